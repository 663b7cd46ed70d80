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
from typing import TypeAlias, TypeVar

from aiormq import Channel

from relmsg.broker.answer import answer
from relmsg.broker.connection import Connection
from relmsg.broker.one_by_one import MOST_HELD, QUIET_AFTER, OneByOne, ready, returned
from relmsg.broker.tap import Tap
from relmsg.broker.unacked import ANSWER_WITHIN, Receiver, Unacked
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, BrokerRefused, RelmsgError

T = TypeVar("T")
AnyReader: TypeAlias = "Reader | OneByOne"


class ReadingEnded(BrokerAway):
    """The connection was lost while messages were delivered; what was not acked is back in the queue."""

    def __init__(self, present: int, received: int) -> None:
        super().__init__()
        self.present = present
        self.received = received


@asynccontextmanager
async def reading(connection: Connection, queue: str, clock: Clock) -> AsyncIterator[Reader]:
    """A reader of what is in the queue now. Leaving it puts back what was not acked, and waits until it is back.

    :raises ReadingEnded: the connection was lost, perhaps over one of the messages.
    """
    channel = await connection.channel()
    reader = None
    try:
        # The passive declaration is answered with the number of messages that are ready.
        present = await ready(channel, queue)
        reader = Reader(channel, queue, present, connection.tap)
        try:
            await reader.start()
            yield reader
            await reader.all_here()
        finally:
            reader.detach()
    except BaseException as error:
        if reader is not None and channel.is_closed and isinstance(error, BrokerAway | BrokerRefused):
            raise ReadingEnded(reader.present - reader.acked, reader.received) from error
        with suppress(RelmsgError):
            await _close(channel)
        raise
    # Only a channel that was closed in good order has had all its acks taken.
    await _close(channel)
    await returned(connection, queue, present - reader.acked, clock)


class Reader:
    """One consumer: takes messages one after another, at most as many as were there at first, and holds them unacked
    until its channel closes.
    """

    most_at_once = MOST_HELD
    unreadable = None

    def __init__(self, channel: Channel, queue: str, present: int, tap: Tap | None) -> None:
        self.present = present
        self.acked = 0
        self.received = 0
        self._taken = 0
        self._prefetch = min(present, MOST_HELD)
        self._channel = channel
        self._queue = queue
        self._arrived: asyncio.Queue[Unacked | None] = asyncio.Queue()
        self._receiver = Receiver(channel, tap, self._arrive)

    async def start(self) -> None:
        """Have the messages delivered."""
        if self._prefetch > 0:
            await self._receiver.consume(self._queue, self._prefetch)

    def detach(self) -> None:
        """Read nothing more."""
        self._receiver.detach()

    async def next(self) -> Unacked | None:
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

    async def ack(self, delivered: Unacked) -> None:
        """Take a message out of the queue."""
        await self._ask(self._channel.basic_ack(delivered.tag))
        self.acked += 1

    def _arrive(self, delivered: Unacked | None) -> None:
        self.received += delivered is not None
        self._arrived.put_nowait(delivered)

    async def _ask(self, call: Awaitable[T]) -> T:
        return await answer(call, within=ANSWER_WITHIN)


async def _close(channel: Channel) -> None:
    await answer(channel.close(), within=ANSWER_WITHIN)
