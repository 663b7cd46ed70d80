"""The outbox from the publishing side: one INSERT in the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import Insert, Interval, bindparam, func
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from relmsg.broker.envelope import MAX_BODY_BYTES, Envelope, outbox_id, seal
from relmsg.errors import TransactionRequired, UsageError
from relmsg.message import Message
from relmsg.outbox.wrap import OutboxExchange
from relmsg.schema import DEFAULT_SCHEMA, tables

Transaction: TypeAlias = AsyncSession | AsyncConnection


class Outbox:
    """Publishes messages as part of the caller's database transaction.

    Holds: the message is sent if and only if that transaction commits; with a savepoint, if and only if the savepoint
    is kept as well. Nothing is held in memory, nothing is sent from here, nothing is ever committed here: the relay
    moves committed rows to the broker.

    Does not hold: two messages of *different* ordering keys, or without one, keep no order. For one key the order is
    that in which the rows were written, as long as the writers of the key wait for each other (for example because they
    lock the same business row, as they normally do).

    :param source: the name of this service, sent as ``app_id``: consumers tell messages of different senders by it.
    :param schema: the database schema with relmsg's tables.
    :param max_body_bytes: the largest body that may be published, 1 MiB unless told otherwise.
    """

    def __init__(self, source: str, *, schema: str = DEFAULT_SCHEMA, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        if not source or len(source.encode()) > 255:
            raise UsageError("Outbox(source=…) names the publishing service, in 1 to 255 bytes")
        self.source = source
        self.max_body_bytes = max_body_bytes
        self._table = tables(schema).outbox_message
        self._statement = _insert(schema)

    async def publish(self, tx: Transaction, message: Message) -> Message:
        """Write one message into the outbox, in the transaction of ``tx``; returns the message, with its id.

        The message is checked as a whole now, the AMQP encoding included, so that one which could never be sent fails
        here, where your transaction can still be rolled back.

        :raises InvalidMessage: one of its subclasses, naming the rule that the message breaks.
        :raises TransactionRequired: ``tx`` has no transaction, or its connection commits by itself (AUTOCOMMIT).
        """
        await self.publish_many(tx, [message])
        return message

    async def publish_many(self, tx: Transaction, messages: Iterable[Message]) -> Sequence[Message]:
        """Write many messages in one statement, in their order; either all of them or, with an error, none.

        :raises InvalidMessage: as ``publish``; nothing is written.
        :raises TransactionRequired: as ``publish``.
        """
        batch = list(messages)
        rows = [self._row(message) for message in batch]
        connection = await _protected(tx)
        if rows:
            await connection.execute(self._statement, rows)
        return batch

    def insert(self, message: Message) -> Insert:
        """The same INSERT as a Core statement, for sync sessions, ``Connection.execute`` and anything else.

        The caller sees to the transaction: executed on a connection that commits by itself, the message is sent
        whatever becomes of the rest of the work.

        :raises InvalidMessage: as ``publish``.
        """
        row = self._row(message)
        expires_in = row.pop("expires_in")
        return self._table.insert().values(
            **row, expires_at=None if expires_in is None else func.clock_timestamp() + expires_in
        )

    def wrap(self, tx: Transaction, exchange: str) -> OutboxExchange:
        """A stand-in for an aio-pika exchange: ``await outbox.wrap(session, "shop").publish(message, routing_key)``.

        What was sent at once before is now written into the outbox, in the transaction of ``tx``.
        """
        return OutboxExchange(self, tx, exchange)

    def _row(self, message: Message) -> dict[str, Any]:
        if not isinstance(message, Message):
            raise UsageError(f"publish(tx, message): the message is a relmsg.Message, not a {type(message).__name__}")
        envelope = seal(message, source=self.source, max_body_bytes=self.max_body_bytes)
        return {"message_id": outbox_id(message), **_columns(envelope)}


def _columns(envelope: Envelope) -> dict[str, Any]:
    expiration = envelope.expiration_ms
    return {
        "type": envelope.type,
        "source": envelope.source,
        "exchange": envelope.exchange,
        "routing_key": envelope.routing_key,
        "ordering_key": envelope.ordering_key,
        "headers": dict(envelope.headers),
        "content_type": envelope.content_type,
        "content_encoding": envelope.content_encoding,
        "correlation_id": envelope.correlation_id,
        "reply_to": envelope.reply_to,
        "body": envelope.body,
        "occurred_at": envelope.timestamp,
        "expires_in": None if expiration is None else timedelta(milliseconds=expiration),
    }


@lru_cache
def _insert(schema: str) -> Insert:
    """Built once: building it for each message costs more than the database takes for the row (performance.md F)."""
    expires_at = func.clock_timestamp() + bindparam("expires_in", type_=Interval())
    return tables(schema).outbox_message.insert().values(expires_at=expires_at)


async def _protected(tx: Transaction) -> AsyncConnection:
    """The connection of an open transaction that will not commit behind the caller's back."""
    if isinstance(tx, AsyncSession):
        if not tx.in_transaction():
            raise TransactionRequired(
                "this session has no transaction: publish inside `async with session.begin():`, or after the work that "
                "the message tells about, and commit both together"
            )
        connection = await tx.connection()
    elif isinstance(tx, AsyncConnection):
        connection = tx
        if not tx.in_transaction():
            raise TransactionRequired("this connection has no transaction: publish inside `async with tx.begin():`")
    else:
        raise UsageError(
            f"publish into an AsyncSession or an AsyncConnection, not a {type(tx).__name__}; "
            "for sync sessions execute outbox.insert(message)"
        )
    # The driver's own flag: SQLAlchemy's get_isolation_level() asks the server, a round trip for every message.
    driver = (await connection.get_raw_connection()).dbapi_connection
    if getattr(driver, "autocommit", False):
        raise TransactionRequired(
            "this connection is in AUTOCOMMIT: the message would be sent even if your work is rolled back"
        )
    return connection
