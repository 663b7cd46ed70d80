"""Receives messages on a channel as a consumer reads them, and holds them unacked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from aiormq import Channel
from aiormq.abc import DeliveredMessage

from relmsg.amqp.remarks import Remarks
from relmsg.broker.answer import answer
from relmsg.broker.receiving import Receiving
from relmsg.broker.tap import Tap
from relmsg.broker.wire import received
from relmsg.message import Message

T = TypeVar("T")

ANSWER_WITHIN = 30.0  # seconds


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


class Receiver:
    """Gives ``arrive`` each message that is delivered on the channel, and None once the channel is closed.

    It reads as a consumer does: what cannot be read of a message is left out or repaired, and harms no other. Only
    where the connection has no tap aiormq reads, which gives the whole connection up over such a message.
    """

    def __init__(self, channel: Channel, tap: Tap | None, arrive: Callable[[Unacked | None], None]) -> None:
        self._channel = channel
        self._tap = tap
        self._arrive = arrive
        self._receiving = Receiving(self._deliver, lambda: None)
        channel.closing.add_done_callback(lambda _: arrive(None))
        if tap is not None:
            tap.attach(channel.number, self._receiving, self._receiving.take_many)

    async def consume(self, queue: str, prefetch: int) -> str | None:
        """Have so many messages of the queue delivered; the consumer's tag."""
        await self._ask(self._channel.basic_qos(prefetch_count=prefetch))
        return (await self._ask(self._channel.basic_consume(queue, self._note))).consumer_tag

    def detach(self) -> None:
        """Read nothing more."""
        if self._tap is not None:
            self._tap.detach(self._channel.number, self._receiving)

    def _deliver(self, tag: int, message: Message, expiration: str | None, remarks: Remarks | None) -> None:
        self._arrive(Unacked(tag, message, expiration, remarks))

    async def _note(self, raw: DeliveredMessage) -> None:
        """A message that aiormq has read."""
        properties = raw.header.properties
        remarks = Remarks(cluster_id=properties.cluster_id) if properties.cluster_id else None
        self._deliver(raw.delivery_tag or 0, received(raw), properties.expiration or None, remarks)

    async def _ask(self, call: Awaitable[T]) -> T:
        return await answer(call, within=ANSWER_WITHIN)
