"""Looking through a queue so that it is as before afterwards.

Whatever is not acked returns when the channel closes, in its old order. On a quorum queue this holds only for *one*
consumer, that took *all* messages, on a channel that is *closed*: returned messages stand in a line of their own, and
part of it goes to its end; ``basic.get`` makes a consumer of each message and mixes them up from about 20 on, and so
does ``basic.nack`` from 32 on (measured on RabbitMQ 3.10.8; docs/decisions/0010).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from aiormq import Channel
from aiormq.abc import DeliveredMessage

from relmsg.broker.answer import answer
from relmsg.broker.connection import Connection
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, RelmsgError

T = TypeVar("T")

ANSWER_WITHIN = 30.0  # seconds
QUIET_AFTER = 5.0  # seconds without a delivery that should come
RETURNED_WITHIN = 5.0  # seconds
MOST_HELD = 65_535  # AMQP: a prefetch count has 16 bits


@asynccontextmanager
async def reading(connection: Connection, queue: str, clock: Clock) -> AsyncIterator[Reader]:
    """A reader of what is in the queue now. Leaving it puts back what was not acked, and waits until it is back."""
    channel = await connection.channel()
    try:
        # The passive declaration is answered with the number of messages that are ready.
        present = await _ready(channel, queue)
        reader = Reader(channel, queue, present)
        await reader.start()
        yield reader
        await reader.all_here()
    except BaseException:
        with suppress(RelmsgError):
            await _close(channel)
        raise
    # Only a channel that was closed in good order has had all its acks taken.
    await _close(channel)
    await _returned(connection, queue, present - reader.acked, clock)


class Reader:
    """One consumer: takes messages one after another, at most as many as were there at first, and holds them unacked
    until its channel closes."""

    def __init__(self, channel: Channel, queue: str, present: int) -> None:
        self.present = present
        self.acked = 0
        self._taken = 0
        self._prefetch = min(present, MOST_HELD)
        self._channel = channel
        self._queue = queue
        self._arrived: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()

    async def start(self) -> None:
        """Have the messages delivered."""
        if self._prefetch == 0:
            return
        self._channel.closing.add_done_callback(lambda _: self._arrived.put_nowait(None))
        await self._ask(self._channel.basic_qos(prefetch_count=self._prefetch))
        await self._ask(self._channel.basic_consume(self._queue, self._arrive))

    async def next(self) -> DeliveredMessage | None:
        """The next message; None when there is no further one."""
        if self._taken >= self.present or (self._taken - self.acked >= self._prefetch):
            return None
        try:
            async with asyncio.timeout(QUIET_AFTER):
                delivered = await self._arrived.get()
        except TimeoutError:  # another reader has the rest
            return None
        if delivered is None:
            raise BrokerAway("the connection to RabbitMQ was lost; what was not acked is back in the queue")
        self._taken += 1
        return delivered

    async def all_here(self) -> None:
        """Wait until all messages are delivered, as only then they return in order."""
        while self.present <= MOST_HELD and await self.next() is not None:
            pass

    async def ack(self, delivered: DeliveredMessage) -> None:
        """Take a message out of the queue."""
        assert delivered.delivery_tag is not None
        await self._ask(self._channel.basic_ack(delivered.delivery_tag))
        self.acked += 1

    async def _arrive(self, delivered: DeliveredMessage) -> None:
        self._arrived.put_nowait(delivered)

    async def _ask(self, call: Awaitable[T]) -> T:
        return await answer(call, within=ANSWER_WITHIN)


async def _ready(channel: Channel, queue: str) -> int:
    declared = await answer(channel.queue_declare(queue, passive=True), within=ANSWER_WITHIN)
    return declared.message_count or 0


async def _close(channel: Channel) -> None:
    await answer(channel.close(), within=ANSWER_WITHIN)


async def _returned(connection: Connection, queue: str, expected: int, clock: Clock) -> None:
    """Wait until what was held is back: a queue takes its time, and the next look would miss it."""
    channel = await connection.channel()
    deadline = clock.monotonic() + RETURNED_WITHIN
    while await _ready(channel, queue) < expected and clock.monotonic() < deadline:
        await clock.sleep(0.01)
    await _close(channel)
