"""A stand-in for an aio-pika exchange that writes into the outbox instead of the socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from relmsg.broker.aio_pika_message import AioPikaMessage, convert
from relmsg.errors import UnsupportedProperty
from relmsg.message import Message

if TYPE_CHECKING:
    from relmsg.outbox.publish import Outbox


class AbstractExchange(Protocol):
    """What a publisher may use of an exchange, whether it is aio-pika's or ``Outbox.wrap``'s: annotate with this.

    aio-pika's own ``AbstractExchange`` also declares, binds and deletes, which nothing in a transaction can do.
    """

    @property
    def name(self) -> str:
        """The name of the exchange."""

    async def publish(
        self,
        message: AioPikaMessage,
        routing_key: str,
        *,
        mandatory: bool = True,
        immediate: bool = False,
        timeout: float | None = None,
    ) -> object:
        """Send the message to this exchange, or write it into the outbox for it."""


class OutboxExchange:
    """Answers to ``publish`` as an aio-pika exchange does; made by ``Outbox.wrap``.

    What differs: the message goes out after the transaction has committed, always persistent, mandatory and confirmed
    by the relay. There is no broker answer yet, so the written message is returned instead of a confirmation.
    """

    def __init__(self, outbox: Outbox, tx: AsyncSession | AsyncConnection, name: str) -> None:
        self.name = name
        self._outbox = outbox
        self._tx = tx

    async def publish(
        self,
        message: AioPikaMessage,
        routing_key: str,
        *,
        mandatory: bool = True,  # noqa: ARG002 - aio-pika's signature
        immediate: bool = False,
        timeout: float | None = None,  # noqa: ARG002 - aio-pika's signature
    ) -> Message:
        """Write the message into the outbox, for this exchange.

        Kept: body, headers, content type and encoding, message id, type, timestamp, correlation id, reply_to, app id
        and expiration. ``mandatory=False`` and ``timeout`` are accepted: the relay's publish is always mandatory, and
        here nothing waits for the broker.

        The delivery mode is always persistent: aio-pika makes messages transient unless told otherwise, and a message
        does not show whether it was told.

        :raises UnsupportedProperty: for what cannot be kept: ``immediate``, a priority, ``user_id``.
        :raises InvalidMessage: as ``Outbox.publish``; a header value that AMQP clients damage is one of them.
        :raises TransactionRequired: as ``Outbox.publish``.
        """
        if immediate:
            raise UnsupportedProperty("immediate=True is not supported: RabbitMQ closes the connection on it")
        return await self._outbox.publish(self._tx, convert(message, self.name, routing_key))
