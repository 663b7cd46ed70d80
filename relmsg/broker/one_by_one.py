"""Reading a queue message by message, past those whose delivery ends the connection.

RabbitMQ 4 ends the connection of an AMQP 0-9-1 consumer over some messages of AMQP 1.0 clients, a ``uuid`` among their
properties for one, and a client does so over properties that it cannot decode. With one message out at a time it is
clear which one it was. How to get past it depends on the queue (measured on RabbitMQ 3.10.8 and 4.0.5):

A *quorum* queue puts what is returned behind all else that was returned. So every message is taken and returned once,
in order; from then on each message, also one that ended the connection, goes to the end of the line when it comes
back, and once around is the old order again.

A *classic* queue puts what is returned back into its place, before all others: they are out of reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from aiormq import Channel

from relmsg.broker.answer import answer, close_quietly
from relmsg.broker.connection import Connection
from relmsg.broker.unacked import ANSWER_WITHIN, Receiver, Unacked
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, BrokerRefused

T = TypeVar("T")

QUIET_AFTER = 5.0  # seconds without a delivery that should come
RETURNED_WITHIN = 5.0  # seconds
MOST_HELD = 65_535  # AMQP: a prefetch count has 16 bits
MOST_UNREADABLE = 20  # each costs a connection
OPEN_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Messages that could not be read: their places among those that were there, counted from 1, and how many stand
    behind them out of reach."""

    queue: str
    places: tuple[int, ...]
    present: int
    behind: int

    def __str__(self) -> str:
        many = len(self.places) > 1
        places = ", ".join(map(str, self.places))
        told = f"{'messages' if many else 'message'} {places} of {self.present} in {self.queue} cannot be read: "
        told += f"the connection is lost when {'they are' if many else 'it is'} delivered"
        if self.behind:
            told += f", and the {self.behind} behind cannot be reached in this queue"
        return told + "; read with an AMQP 1.0 client, which can take it out"


@asynccontextmanager
async def one_by_one(
    connection: Connection, queue: str, clock: Clock, *, rotates: bool, good: int
) -> AsyncIterator[OneByOne]:
    """A reader that takes one message at a time; leaving it puts back what was not acked.

    :param rotates: whether it is a quorum queue.
    :param good: how many of the first messages are known to be readable.
    """
    reader = OneByOne(connection, queue, clock, rotates=rotates)
    await reader.start(1 if rotates else max(1, good))
    try:
        yield reader
        while rotates and await reader.next() is not None:  # once around is the old order
            pass
    finally:
        await reader.close()
    await returned(connection, queue, reader.present - reader.acked, clock)


class OneByOne:
    """One consumer with one message out that has not been looked at; counts what it could not read."""

    most_at_once = 1

    def __init__(self, connection: Connection, queue: str, clock: Clock, *, rotates: bool) -> None:
        self.present = 0
        self.acked = 0
        self._connection = connection
        self._queue = queue
        self._clock = clock
        self._rotates = rotates
        self._unreadable: list[int] = []
        self._seen = 0
        self._is_stuck = False
        self._channel: Channel | None = None
        self._arrived: asyncio.Queue[Unacked | None] = asyncio.Queue()
        self._held: list[Unacked] = []
        self._credit = 0
        self._first = 1
        self._receiver: Receiver | None = None
        self._consumer: str | None = None

    @property
    def unreadable(self) -> Unreadable | None:
        """What could not be read so far; None if nothing."""
        if not self._unreadable:
            return None
        behind = self.present - self._seen if self._is_stuck else 0
        return Unreadable(self._queue, tuple(self._unreadable), self.present, behind)

    async def start(self, first: int) -> None:
        """Count what is there; in a quorum queue have all of it taken and returned once. ``first``: so many are asked
        for at once at the beginning."""
        self._first = first
        channel = await self._connection.channel()
        self.present = min(await ready(channel, self._queue), MOST_HELD)
        await close_quietly(channel)
        if self.present == 0 or not self._rotates:
            return
        with suppress(BrokerAway, BrokerRefused):  # the message at fault is among them
            await self._open(self.present)
        await self.close()
        await returned(self._connection, self._queue, self.present, self._clock)

    async def next(self) -> Unacked | None:
        """The next message that can be read; None when there is no further one."""
        while self._seen < self.present and not self._is_stuck:
            try:
                await self._ask_for_one()
                async with asyncio.timeout(QUIET_AFTER):
                    delivered = await self._arrived.get()
            except TimeoutError:  # another reader has the rest
                return None
            self._seen += 1
            if delivered is not None:
                self._held.append(delivered)
                return delivered
            await self._lost()
        return None

    async def ack(self, delivered: Unacked) -> None:
        """Take a message out of the queue: the last one that ``next`` returned. The next one then comes by itself."""
        if self._channel is None:
            raise BrokerAway("the connection to RabbitMQ was lost; what was not acked is back in the queue")
        if self._seen >= self.present and self._consumer is not None:
            await self._ask(self._channel.basic_cancel(self._consumer))  # the ack would have the first one come again
        await self._ask(self._channel.basic_ack(delivered.tag))
        self._held.remove(delivered)
        self.acked += 1

    async def close(self) -> None:
        """Put everything back that is held."""
        if self._receiver is not None:
            self._receiver.detach()
        if self._channel is not None:
            await close_quietly(self._channel)
        self._channel, self._held, self._credit = None, [], 0

    async def _lost(self) -> None:
        await self.close()
        self._unreadable.append(self._seen)
        self._is_stuck = not self._rotates or len(self._unreadable) >= MOST_UNREADABLE
        # Before the next one is lost: the order in which they come back is the order in which they stand.
        await returned(self._connection, self._queue, self.present - self.acked, self._clock)

    async def _ask_for_one(self) -> None:
        """See to it that one further message is delivered."""
        if self._channel is None:
            return await self._open_again()
        if self._channel.is_closed:
            if not self._held:
                return None  # over the message that came by itself after an ack
            if not self._rotates:  # all that was looked at stands before the others again
                raise BrokerAway("the connection to RabbitMQ was lost; what was not acked is back in the queue")
            await self.close()
            return await self._open_again()
        with self._unless_lost(self._channel):
            if self._rotates and self._held:
                await self._ask(self._channel.basic_nack(self._held.pop().tag, requeue=True))
            elif len(self._held) >= self._credit:
                await self._consume(1)
        return None

    @contextmanager
    def _unless_lost(self, channel: Channel) -> Iterator[None]:
        """Let pass what fails because the channel was lost meanwhile: ``next`` will hear of that."""
        try:
            yield
        except (BrokerAway, BrokerRefused):
            if not channel.is_closed:
                raise

    async def _open_again(self) -> None:
        for attempt in range(1, OPEN_ATTEMPTS + 1):
            try:
                await self._open(self._first)
                break
            except (BrokerAway, BrokerRefused):
                if attempt == OPEN_ATTEMPTS:
                    raise
                await self._clock.sleep(0.1 * attempt)  # the loss of the one before is being noticed

    async def _open(self, prefetch: int) -> None:
        self._arrived = asyncio.Queue()
        channel = await self._connection.channel()
        self._receiver = Receiver(channel, self._connection.tap, self._arrived.put_nowait)
        self._channel, self._credit = channel, 0
        await self._consume(prefetch)

    async def _consume(self, prefetch: int) -> None:
        assert self._receiver is not None
        self._consumer = await self._receiver.consume(self._queue, prefetch)
        self._credit += prefetch

    async def _ask(self, call: Awaitable[T]) -> T:
        return await answer(call, within=ANSWER_WITHIN)


async def ready(channel: Channel, queue: str) -> int:
    """How many messages are ready in the queue."""
    declared = await answer(channel.queue_declare(queue, passive=True), within=ANSWER_WITHIN)
    return declared.message_count or 0


async def returned(connection: Connection, queue: str, expected: int, clock: Clock) -> None:
    """Wait until what was held is back, five seconds at most: a queue takes its time, and the next look would miss it.

    A connection that was just lost is waited for as well.
    """
    deadline, channel = clock.monotonic() + RETURNED_WITHIN, None
    while clock.monotonic() < deadline:
        try:
            channel = channel or await connection.channel()
            if await ready(channel, queue) >= expected:
                break
        except (BrokerAway, BrokerRefused):
            channel = None
        await clock.sleep(0.01)
    if channel is not None:
        await close_quietly(channel)
