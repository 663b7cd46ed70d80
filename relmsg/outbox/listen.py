"""The relay's ear for hints: LISTEN on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.clock import Clock, SystemClock
from relmsg.outbox.notify import apart, channel
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
CHECK_SECONDS = 30.0
FIRST_BACKOFF, MOST_BACKOFF = 0.1, 30.0


class Listener:
    """Calls ``wake`` for each hint of a schema and counts it, as long as ``run`` runs.

    A hint is a courtesy: whatever happens here, the relay polls. A lost connection is replaced after 0.1 to 30 s, with
    jitter; one that died without a word is found out within 40 s. ``wake`` is also called when the listening
    begins, for what was hinted before.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        wake: Callable[[], None],
        *,
        schema: str,
        hints: Counter,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._wake = wake
        self._hints = hints
        self._channel = channel(schema)
        self._clock = clock or SystemClock()
        self._chance = chance
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled."""
        failures = 0
        engine = apart(self._engine)
        try:
            while True:
                try:
                    await self._listen(engine)
                except Exception as error:  # noqa: BLE001 - whatever it is, polling goes on
                    failures = 1 if self.listening.is_set() else failures + 1
                    if failures == 1:
                        log.warning("no hints are heard for now, polling goes on: %s", error)
                finally:
                    self.listening.clear()
                await self._clock.sleep(full_jitter(failures, FIRST_BACKOFF, MOST_BACKOFF, self._chance))
        finally:
            await engine.dispose()

    async def _listen(self, engine: AsyncEngine) -> None:
        lost = asyncio.Event()
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await engine.connect()
        try:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            async with asyncio.timeout(CONNECT_SECONDS):
                await driver.add_listener(self._channel, self._heard)
            driver.add_termination_listener(lambda _: lost.set())
            self.listening.set()
            self._wake()
            while not lost.is_set():
                try:
                    async with asyncio.timeout(CHECK_SECONDS):
                        await lost.wait()
                except TimeoutError:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await driver.fetch("SELECT 1")
            raise ConnectionError("the connection was lost")
        finally:
            # Never back into a pool: it would go on listening there.
            await asyncio.shield(connection.invalidate())
            await connection.close()

    def _heard(self, *_: object) -> None:
        self._hints.inc()
        self._wake()
