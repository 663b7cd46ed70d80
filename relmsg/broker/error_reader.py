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
from typing import NamedTuple, TypeVar

from aiormq import Channel
from aiormq.abc import DeliveredMessage

from relmsg.amqp.remarks import Remarks
from relmsg.broker.answer import answer
from relmsg.broker.connection import Connection
from relmsg.broker.receiving import Receiving
from relmsg.broker.tap import Tap
from relmsg.broker.wire import received
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, RelmsgError
from relmsg.message import Message

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
        reader = Reader(channel, queue, present, connection.tap)
        try:
            await reader.start()
            yield reader
            await reader.all_here()
        finally:
            reader.detach()
    except BaseException:
        with suppress(RelmsgError):
            await _close(channel)
        raise
    # Only a channel that was closed in good order has had all its acks taken.
    await _close(channel)
    await _returned(connection, queue, present - reader.acked, clock)


class Unacked(NamedTuple):
    """A message that a reader holds. ``remarks`` name what could not be read of it; ``expiration`` is as it came."""

    tag: int
    message: Message
    expiration: str | None
    remarks: Remarks | None

    @property
    def body(self) -> bytes:
        """The body as it came."""
        assert isinstance(self.message.body, bytes)
        return self.message.body


class Reader:
    """One consumer: takes messages one after another, at most as many as were there at first, and holds them unacked
    until its channel closes.

    It reads as a consumer does: what cannot be read of a message is left out or repaired, and harms no other. Only
    where the connection has no tap aiormq reads, which gives the whole connection up over such a message.
    """

    def __init__(self, channel: Channel, queue: str, present: int, tap: Tap | None) -> None:
        self.present = present
        self.acked = 0
        self._taken = 0
        self._prefetch = min(present, MOST_HELD)
        self._channel = channel
        self._queue = queue
        self._arrived: asyncio.Queue[Unacked | None] = asyncio.Queue()
        self._tap = tap
        self._receiving = Receiving(self._arrive, lambda: None)

    async def start(self) -> None:
        """Have the messages delivered."""
        if self._prefetch == 0:
            return
        self._channel.closing.add_done_callback(lambda _: self._arrived.put_nowait(None))
        await self._ask(self._channel.basic_qos(prefetch_count=self._prefetch))
        if self._tap is not None:
            self._tap.attach(self._channel.number, self._receiving, self._receiving.take_many)
        await self._ask(self._channel.basic_consume(self._queue, self._note))

    def detach(self) -> None:
        """Read nothing more."""
        if self._tap is not None:
            self._tap.detach(self._channel.number, self._receiving)

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

    def _arrive(self, tag: int, message: Message, expiration: str | None, remarks: Remarks | None) -> None:
        self._arrived.put_nowait(Unacked(tag, message, expiration, remarks))

    async def _note(self, raw: DeliveredMessage) -> None:
        """A message that aiormq has read."""
        properties = raw.header.properties
        remarks = Remarks(cluster_id=properties.cluster_id) if properties.cluster_id else None
        self._arrive(raw.delivery_tag or 0, received(raw), properties.expiration or None, remarks)

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
