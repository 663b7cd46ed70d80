"""A message that the broker has handed over, and the one object through which it can be acked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pamqp.commands import Basic

from relmsg.amqp.moved_ids import MOVED_CORRELATION_ID, fitting_id
from relmsg.amqp.remarks import Remarks
from relmsg.broker.wire import PERSISTENT, Publication, copy_of
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

    ``expiration`` is the time to live as it came, in milliseconds. ``altered`` names properties and headers that could
    not be read, and are missing from the message or repaired in it; empty for all but a few. ``fault`` tells why the
    message cannot be handled without them; None for most. ``cluster_id`` is a property that few clients send.
    """

    __slots__ = ("_origin", "_remarks", "_tag", "expiration", "message", "queue")

    def __init__(
        self,
        message: Message,
        queue: str,
        origin: Origin,
        tag: int,
        *,
        expiration: str | None = None,
        remarks: Remarks | None = None,
    ) -> None:
        self.message = message
        self.queue = queue
        self.expiration = expiration
        self._remarks = remarks
        self._origin = origin
        self._tag = tag

    @property
    def redelivered(self) -> bool:
        """Whether the broker had given it to some consumer before; False does not mean it is new."""
        return self.message.redelivered

    @property
    def user_id(self) -> str | None:
        """The login it was published by, where its publisher says so: RabbitMQ lets nobody name another."""
        return self.message.user_id

    @property
    def fault(self) -> Exception | None:
        """What could not be read, and must not be missing."""
        return self._remarks.fault if self._remarks else None

    @property
    def altered(self) -> Sequence[str]:
        """The properties and headers that are not as they came."""
        return self._remarks.altered if self._remarks else ()

    @property
    def originals(self) -> Mapping[str, bytes]:
        """The bytes of the properties that were repaired."""
        return self._remarks.originals if self._remarks else {}

    @property
    def cluster_id(self) -> str | None:
        """A deprecated property, which is sent on."""
        return self._remarks.cluster_id if self._remarks else None

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

        New are the headers and the id; one that AMQP does not carry is replaced by its hash. It is persistent. The
        expiration is left out, and so is the user id, which the broker would hold against *our* login.

        :raises InvalidMessage: the new headers or the id cannot be encoded; the rest always can.
        """
        came = self.message
        assert isinstance(came.body, bytes)
        is_moved = MOVED_CORRELATION_ID in headers
        properties = Basic.Properties(
            content_type=came.content_type,
            content_encoding=came.content_encoding,
            correlation_id=None if is_moved else came.correlation_id,
            reply_to=came.reply_to,
            timestamp=came.timestamp,
            message_type=came.type,
            app_id=came.source,
            headers=dict(headers),
            delivery_mode=PERSISTENT,
            priority=came.priority,
        )
        properties.cluster_id = self.cluster_id or ""  # pamqp refuses it as an argument
        return copy_of(fitting_id(message_id), exchange, routing_key, properties, came.body)
