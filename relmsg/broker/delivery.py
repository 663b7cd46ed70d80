"""A message that the broker has handed over, and the one object through which it can be acked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pamqp.commands import Basic

from relmsg.broker.wire import PERSISTENT, PRIORITY, Publication, copy_of
from relmsg.message import Message


class Origin(Protocol):
    """The channel that a delivery came by."""

    generation: int

    @property
    def is_open(self) -> bool:
        """Whether what came by it can still be acked."""
        ...

    def finish(self, tag: int) -> bool:
        """Ack the message in a moment; False if that cannot be said any more."""
        ...

    def give_back(self, tag: int) -> bool:
        """Have the broker put the message back into its queue; False if that cannot be said any more."""
        ...


class Delivery:
    """A message that the broker has handed to one channel, and waits to hear of on that channel only.

    It can be acked once. A second ack, or one on another channel, would make the broker close the channel and with it
    everything that is under way there (reliability B16), so both are answered with False here and never sent.

    ``fault`` tells why properties or headers of the message could not be read; None for all but a few. The message then
    has what could be. ``redelivered``: the broker had given it to some consumer before; False does not mean it is new.
    ``expiration`` is the time to live the message was published with, in milliseconds. ``user_id`` is the login it was
    published by, where its publisher says so: RabbitMQ lets nobody name another.
    """

    __slots__ = ("_origin", "_tag", "expiration", "fault", "message", "queue", "redelivered", "user_id")

    def __init__(
        self,
        message: Message,
        queue: str,
        origin: Origin,
        tag: int,
        *,
        redelivered: bool,
        expiration: str | None,
        user_id: str | None = None,
        fault: Exception | None = None,
    ) -> None:
        self.message = message
        self.queue = queue
        self.redelivered = redelivered
        self.expiration = expiration
        self.user_id = user_id
        self.fault = fault
        self._origin = origin
        self._tag = tag

    @property
    def generation(self) -> int:
        """The number of the channel's life; what came in an older one can no longer be acked."""
        return self._origin.generation

    @property
    def is_stale(self) -> bool:
        """Whether its channel is gone: the broker has taken the message back and will deliver it again."""
        return not self._origin.is_open

    async def ack(self) -> bool:
        """Tell the broker that the message is dealt with; False if that cannot be said (any more).

        It is written with other acks, up to 10 ms later, or up to 20 ms more where unfinished messages stand before it;
        this call does not wait for that. The broker may not read it any more: then the message comes
        again.
        """
        return self._origin.is_open and self._origin.finish(self._tag)

    def give_back(self) -> bool:
        """Have the broker put the message back into its queue and deliver it again, to whomever; False if that cannot
        be said (any more). It counts as a delivery: over a queue's delivery limit it is dead-lettered."""
        return self._origin.is_open and self._origin.give_back(self._tag)

    def copy(self, *, exchange: str, routing_key: str, message_id: str, headers: Mapping[str, Any]) -> Publication:
        """A publish of the same message to another place: body and properties as they came.

        New are the headers and, where given, the id. Delivery mode and priority are those of all our publishes. The
        expiration is left out, and so is the user id, which the broker would hold against *our* login.
        """
        came = self.message
        assert isinstance(came.body, bytes)
        properties = Basic.Properties(
            content_type=came.content_type,
            content_encoding=came.content_encoding,
            correlation_id=came.correlation_id,
            reply_to=came.reply_to,
            timestamp=came.timestamp,
            message_type=came.type,
            app_id=came.source,
            message_id=message_id,
            headers=dict(headers),
            delivery_mode=PERSISTENT,
            priority=PRIORITY,
        )
        return copy_of(message_id, exchange, routing_key, properties, came.body)
