"""A stand-in for an aio-pika exchange that writes into the outbox instead of the socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from relmsg.broker.aio_pika_message import AioPikaExchange, AioPikaMessage, convert
from relmsg.errors import UnsupportedOperation, UnsupportedProperty
from relmsg.message import Message

if TYPE_CHECKING:
    from relmsg.outbox.publish import Outbox


class AbstractExchange(Protocol):
    """What a publisher may use of an exchange, whether it is aio-pika's or ``Outbox.wrap``'s: annotate with this.

    aio-pika's own ``AbstractExchange`` also declares, binds and deletes, which nothing in a transaction can do; a
    wrapped exchange passes for it as well, and raises there.
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


# What an aio-pika exchange has besides, by its plain and its robust connection.
OF_THE_BROKER = frozenset({"channel", "auto_delete", "durable", "internal", "passive", "arguments", "restore"})


class OutboxExchange(AioPikaExchange):
    """Publishes as an aio-pika exchange does, and is one to type checkers; made by ``Outbox.wrap``.

    What differs: the message goes out after the transaction has committed, always persistent, mandatory and confirmed
    by the relay. There is no broker answer yet, so the written message is returned instead of a confirmation.
    Everything but ``name`` and ``publish`` raises ``UnsupportedOperation``.
    """

    def __init__(self, outbox: Outbox, tx: AsyncSession | AsyncConnection, name: str) -> None:
        self.name = name
        self._outbox = outbox
        self._tx = tx

    async def publish(  # type: ignore[override] # a message where aio-pika has the broker's answer
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

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<OutboxExchange({self.name!r})>"

    async def declare(self, *_: Any, **__: Any) -> NoReturn:
        """:raises UnsupportedOperation: always; declare exchanges by a ``Topology``."""
        raise _unsupported("declare")

    async def bind(self, *_: Any, **__: Any) -> NoReturn:
        """:raises UnsupportedOperation: always; declare bindings by a ``Topology``."""
        raise _unsupported("bind")

    async def unbind(self, *_: Any, **__: Any) -> NoReturn:
        """:raises UnsupportedOperation: always."""
        raise _unsupported("unbind")

    async def delete(self, *_: Any, **__: Any) -> NoReturn:
        """:raises UnsupportedOperation: always."""
        raise _unsupported("delete")

    def __getattr__(self, name: str) -> NoReturn:
        if name in OF_THE_BROKER:
            raise _unsupported(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)


def _unsupported(name: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"a wrapped exchange has no {name}: it writes into the outbox and talks to no broker; declare exchanges and "
        "bindings by a Topology, and use aio-pika's own exchange for the rest"
    )
