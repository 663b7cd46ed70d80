"""The outbox from the publishing side: one INSERT in the caller's own transaction."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from sqlalchemy import Insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from relmsg.broker.envelope import MAX_BODY_BYTES, outbox_id, seal
from relmsg.errors import TransactionRequired, UsageError
from relmsg.message import Message
from relmsg.outbox.insert import Insertion, SealedRow, sealed_row
from relmsg.outbox.ledger import Wake
from relmsg.outbox.transactions import ledger_of
from relmsg.outbox.wrap import OutboxExchange
from relmsg.schema import DEFAULT_SCHEMA

Transaction: TypeAlias = AsyncSession | AsyncConnection


class Outbox:
    """Publishes messages as part of the caller's database transaction.

    Holds: the message is sent if and only if that transaction commits; with a savepoint, if and only if the savepoint
    is kept as well. Nothing is sent from here, nothing is ever committed here: the relay moves committed rows to the
    broker.

    Does not hold: two messages of *different* ordering keys, or without one, keep no order. For one key the order is
    that in which the rows were written, as long as the writers of the key wait for each other (for example because they
    lock the same business row, as they normally do).

    :param source: the name of this service, sent as ``app_id``: consumers tell messages of different senders by it.
    :param schema: the database schema with relmsg's tables.
    :param max_body_bytes: the largest body that may be published, 1 MiB unless told otherwise.
    :param collect: ``publish`` checks and keeps the messages, and one statement writes all of a transaction's just
        before its commit; if that fails, the commit does. Savepoints and rollbacks count as without. Rows of one
        ordering key get their place at the commit then: writers that hold the business row's lock are still in order,
        for the commit gives it back after the rows are written. Commit and roll back through SQLAlchemy: transaction
        control sent as a text raises UsageError while messages are collected.
    :param wake: called without arguments on the event loop after the COMMIT of a transaction that published, once, and
        never after a rollback; what it raises is logged. For a relay in this process its ``wake``, for a sidecar a
        ``Hint``. A call may be missed (the answer to the COMMIT was lost): the relay's polling makes up for it.
    :raises UsageError: an argument that cannot work; with ``collect`` or ``wake``, ``publish`` raises it through
        another driver than asyncpg and in a two-phase transaction.
    """

    def __init__(
        self,
        source: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        max_body_bytes: int = MAX_BODY_BYTES,
        collect: bool = False,
        wake: Wake | None = None,
    ) -> None:
        if not source or len(source.encode()) > 255:
            raise UsageError("Outbox(source=…) names the publishing service, in 1 to 255 bytes")
        self.source = source
        self.max_body_bytes = max_body_bytes
        if (wake is not None and not callable(wake)) or inspect.iscoroutinefunction(wake):
            raise UsageError("Outbox(wake=…) is a plain function without arguments, not a coroutine function")
        self._insertion = Insertion.of(schema)
        self._collect = collect
        self._wake = wake

    async def publish(self, tx: Transaction, message: Message) -> Message:
        """Write one message into the outbox, in the transaction of ``tx``; returns the message, with its id.

        The message is checked as a whole now, the AMQP encoding included, so that one which could never be sent fails
        here, where your transaction can still be rolled back.

        :raises InvalidMessage: one of its subclasses, naming the rule that the message breaks.
        :raises TransactionRequired: ``tx`` has no transaction, or its connection commits by itself (AUTOCOMMIT).
        """
        row = self._row(message)
        await self._publish(await _protected(tx), [row])
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
            await self._publish(connection, rows)
        return batch

    def insert(self, message: Message) -> Insert:
        """The same INSERT as a Core statement, for sync sessions, ``Connection.execute`` and anything else.

        The caller sees to the transaction: executed on a connection that commits by itself, the message is sent
        whatever becomes of the rest of the work.

        :raises InvalidMessage: as ``publish``.
        """
        return self._insertion.statement(self._row(message))

    def wrap(self, tx: Transaction, exchange: str) -> OutboxExchange:
        """A stand-in for an aio-pika exchange: ``await outbox.wrap(session, "shop").publish(message, routing_key)``.

        What was sent at once before is now written into the outbox, in the transaction of ``tx``.
        """
        return OutboxExchange(self, tx, exchange)

    def _row(self, message: Message) -> SealedRow:
        if not isinstance(message, Message):
            raise UsageError(f"publish(tx, message): the message is a relmsg.Message, not a {type(message).__name__}")
        return sealed_row(outbox_id(message), seal(message, source=self.source, max_body_bytes=self.max_body_bytes))

    async def _publish(self, connection: AsyncConnection, rows: Sequence[SealedRow]) -> None:
        if not self._collect and self._wake is None:
            await self._insertion.write(connection, rows)
            return
        assert connection.sync_connection is not None
        ledger = ledger_of(connection.sync_connection)
        if self._collect:
            ledger.publish(connection.sync_connection, self._insertion, rows, self._wake)
        else:
            await self._insertion.write(connection, rows)
            ledger.publish(connection.sync_connection, self._insertion, [None], self._wake)


async def _protected(tx: Transaction) -> AsyncConnection:
    """The connection of an open transaction that will not commit behind the caller's back."""
    if isinstance(tx, AsyncSession):
        if not tx.in_transaction():
            raise TransactionRequired(
                "this session has no transaction: publish inside `async with session.begin():`, or after the work that "
                "the message tells about, and commit both together"
            )
        connection = await _connection(tx)
    elif isinstance(tx, AsyncConnection):
        if not tx.in_transaction():
            raise TransactionRequired("this connection has no transaction: publish inside `async with tx.begin():`")
        connection = tx
    else:
        raise UsageError(
            f"publish into an AsyncSession or an AsyncConnection, not a {type(tx).__name__}; "
            "for sync sessions execute outbox.insert(message)"
        )
    assert connection.sync_connection is not None
    # The driver's own flag: SQLAlchemy's get_isolation_level() asks the server, a round trip for every message.
    if getattr(connection.sync_connection.connection.dbapi_connection, "autocommit", False):
        raise TransactionRequired(
            "this connection is in AUTOCOMMIT: the message would be sent even if your work is rolled back"
        )
    return connection


async def _connection(session: AsyncSession) -> AsyncConnection:
    """The session's connection, asked for once a transaction and savepoint: asking for it begins a savepoint that was
    not begun yet, and costs as much as all the rest of a publish that is collected.
    """
    transaction = session.sync_session.get_nested_transaction() or session.sync_session.get_transaction()
    known = session.info.get(_connection)
    if known is not None and known[0] is transaction and transaction.is_active:
        return known[1]  # type: ignore[no-any-return]
    connection = await session.connection()
    session.info[_connection] = (transaction, connection)
    return connection
