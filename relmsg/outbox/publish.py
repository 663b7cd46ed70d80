"""The outbox from the publishing side: one INSERT in the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from sqlalchemy import Connection, Insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from relmsg import arguments
from relmsg.broker.envelope import MAX_BODY_BYTES, outbox_id, seal
from relmsg.errors import UsageError
from relmsg.message import Message
from relmsg.outbox.direct import Transaction
from relmsg.outbox.insert import Insertion, SealedRow, sealed_row
from relmsg.outbox.ledger import WRITTEN, Ledger, Wake
from relmsg.outbox.protected import connection_of, known_connection, require_transactional
from relmsg.outbox.routes import Routes
from relmsg.outbox.transactions import ledger_of
from relmsg.outbox.wrap import OutboxExchange
from relmsg.security.encryption import Encryption
from relmsg.security.signing import Signing
from relmsg.settings import schema_in_force
from relmsg.topology import Exchange, Topology


class Outbox:
    """Publishes messages as part of the caller's database transaction.

    Holds: the message is sent if and only if that transaction commits; with a savepoint, if and only if the savepoint
    is kept as well. Nothing is sent from here, nothing is ever committed here: the relay moves committed rows to the
    broker.

    Does not hold: two messages of *different* ordering keys, or without one, keep no order. For one key the order is
    that in which the rows were written, as long as the writers of the key wait for each other (for example because they
    lock the same business row, as they normally do).

    :param source: the name of this service, sent as ``app_id``: consumers tell messages of different senders by it.
    :param schema: the database schema with relmsg's tables; that of ``RELMSG_SCHEMA`` unless given, else ``relmsg``.
    :param max_body_bytes: the largest body that may be published, 1 MiB unless told otherwise.
    :param collect: ``publish`` checks and keeps the messages, and one statement writes all of a transaction's just
        before its commit; if that fails, the commit does. Savepoints and rollbacks count as without. Rows of one
        ordering key get their place at the commit then: writers that hold the business row's lock are still in order,
        for the commit gives it back after the rows are written. Commit and roll back through SQLAlchemy: transaction
        control sent as a text raises UsageError while messages are collected.
    :param wake: called without arguments on the event loop after the COMMIT of a transaction that published, once, and
        never after a rollback; what it raises is logged. For a relay in this process its ``wake``, for a sidecar a
        ``Hint``. A call may be missed (the answer to the COMMIT was lost): the relay's polling makes up for it.
    :param signing: signs each message, so that receivers with ``Trust`` know it for this service's.
    :param encryption: encrypts each body before it is written; only consumers with the key can read it.
    :param topology: what this service's messages are routed by. ``publish`` raises UnknownRoute for an exchange or a
        routing key that leads nowhere in it. Bindings of other services have to stand in it too, at least the exchange
        they lead from.
    :raises UsageError: an argument that cannot work; with ``collect`` or ``wake``, ``publish`` raises it through
        another driver than asyncpg and in a two-phase transaction.
    """

    def __init__(
        self,
        source: str,
        *,
        schema: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        collect: bool = False,
        wake: Wake | None = None,
        signing: Signing | None = None,
        encryption: Encryption | None = None,
        topology: Topology | None = None,
    ) -> None:
        self.source = arguments.text("Outbox(source=…), the name of the publishing service,", source)
        self.max_body_bytes = arguments.whole(
            "Outbox(max_body_bytes=…)", max_body_bytes, 1, arguments.MOST_BODY_BYTES, "bytes"
        )
        if wake is not None:
            arguments.function("Outbox(wake=…)", wake)
        self._insertion = Insertion.of(schema_in_force(schema))
        self._collect = arguments.flag("Outbox(collect=…)", collect)
        self._wake = wake
        if signing is not None:
            arguments.instance("Outbox(signing=…)", signing, Signing, "a key is given as Signing(key)")
        if encryption is not None:
            arguments.instance("Outbox(encryption=…)", encryption, Encryption, "a key is given as Encryption(key)")
        if topology is not None:
            arguments.instance("Outbox(topology=…)", topology, Topology)
        self._routes = None if topology is None else Routes(topology)
        self._seal = partial(seal, source=source, max_body_bytes=max_body_bytes, signing=signing, encryption=encryption)

    async def publish(self, tx: Transaction, message: Message) -> Message:
        """Write one message into the outbox, in the transaction of ``tx``; returns the message, with its id.

        The message is held against every rule of its AMQP encoding, so that one which could never be sent fails here,
        where your transaction can still be rolled back.

        :raises InvalidMessage: one of its subclasses, naming the rule that the message breaks.
        :raises TransactionRequired: ``tx`` has no transaction, or its connection commits by itself (AUTOCOMMIT).
        """
        await self._publish(tx, [self._row(message)])
        return message

    async def publish_many(self, tx: Transaction, messages: Iterable[Message]) -> Sequence[Message]:
        """Write many messages in one statement, in their order; either all of them or, with an error, none.

        :raises InvalidMessage: as ``publish``; nothing is written.
        :raises TransactionRequired: as ``publish``.
        """
        batch = list(arguments.several("publish_many(tx, messages)", messages, Message))
        await self._publish(tx, [self._row(message) for message in batch])
        return batch

    def insert(self, message: Message) -> Insert:
        """The same INSERT as a Core statement, for sync sessions, ``Connection.execute`` and anything else.

        The caller sees to the transaction: executed on a connection that commits by itself, the message is sent
        whatever becomes of the rest of the work.

        :raises InvalidMessage: as ``publish``.
        """
        return self._insertion.statement(self._row(message))

    def wrap(self, tx: Transaction, exchange: str | Exchange) -> OutboxExchange:
        """A stand-in for an aio-pika exchange: ``await outbox.wrap(session, "shop").publish(message, routing_key)``.

        What was sent at once before is now written into the outbox, in the transaction of ``tx``.

        :raises UsageError: there can be no such exchange, or ``tx`` is neither an AsyncSession nor an AsyncConnection.
        """
        require_transactional(tx)
        name = arguments.named(exchange, Exchange)
        if name != "":
            arguments.text("wrap(tx, exchange), where an empty string is the default exchange,", name)
        return OutboxExchange(self, tx, name)

    def _row(self, message: Message) -> SealedRow:
        if not isinstance(message, Message):
            raise UsageError(f"publish(tx, message): the message is a relmsg.Message, not a {type(message).__name__}")
        if self._routes is not None:
            self._routes.require(message)
        return sealed_row(outbox_id(message), self._seal(message))

    async def _publish(self, tx: Transaction, rows: Sequence[SealedRow]) -> None:
        connection = known_connection(tx)
        if connection is None:
            # All of it in one go: each trip into SQLAlchemy's synchronous world costs as much as a message.
            assert isinstance(tx, AsyncSession)
            await tx.run_sync(self._publish_sync, rows)
            return
        if not rows:
            return
        ledger = self._ledger(connection)
        if not self._collect:
            await self._insertion.write(tx, connection, rows)
        if ledger is not None:
            ledger.publish(connection, self._insertion, rows if self._collect else WRITTEN, self._wake)

    def _publish_sync(self, session: Session, rows: Sequence[SealedRow]) -> None:
        connection = connection_of(session)
        if not rows:
            return
        ledger = self._ledger(connection)
        if not self._collect:
            self._insertion.write_sync(connection, rows)
        if ledger is not None:
            ledger.publish(connection, self._insertion, rows if self._collect else WRITTEN, self._wake)

    def _ledger(self, connection: Connection) -> Ledger | None:
        """Where the publish is to be noted; found before anything is written, for this may be refused."""
        return ledger_of(connection) if self._collect or self._wake is not None else None
