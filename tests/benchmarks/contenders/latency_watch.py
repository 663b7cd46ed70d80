"""From COMMIT to the consumer's callback: producer, watch and consumer share a process, so one clock tells both."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from statistics import quantiles

import aiormq
from aiormq.abc import DeliveredMessage

KEY_BYTES = 36
UNCOUNTED_SECONDS, LAST_SECONDS = 1.0, 10.0


class Watch:
    """Knows when each message was committed, and notes when it arrives; the first second is not counted."""

    def __init__(self) -> None:
        self._committed: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._arrived = asyncio.Event()

    def committing(self, key: str) -> None:
        """COMMIT is about to be sent. (A message can never be seen before.)"""
        self._committed[key] = time.perf_counter()

    async def receive(self, queue: str) -> None:
        """Consume the queue from now on."""
        connection = await aiormq.connect(os.environ["RELMSG_AMQP_URL"])
        channel = await connection.channel()

        async def arrived(delivered: DeliveredMessage) -> None:
            key = bytes(delivered.body[:KEY_BYTES]).decode()
            self._took.setdefault(key, time.perf_counter() - self._committed[key])
            self._arrived.set()

        await channel.basic_consume(queue, arrived, no_ack=True)

    async def run(self, count: int, every: float, send: Callable[[str], Awaitable[None]]) -> dict[str, float]:
        """Send ``count`` messages, one ``every`` so many seconds, and wait for all; milliseconds."""
        loop = asyncio.get_running_loop()
        began, uncounted, keys = loop.time(), round(UNCOUNTED_SECONDS / every) or 1, []
        for number in range(uncounted + count):
            keys.append(str(uuid.uuid4()))
            await send(keys[-1])
            await asyncio.sleep(max(0.0, began + (number + 1) * every - loop.time()))
        async with asyncio.timeout(LAST_SECONDS):
            while len(self._took) < len(keys):
                self._arrived.clear()
                await self._arrived.wait()
        took = [self._took[key] * 1000 for key in keys[uncounted:]]
        percent = quantiles(took, n=100, method="inclusive")
        return {"p50_ms": percent[49], "p99_ms": percent[98], "max_ms": max(took)}
