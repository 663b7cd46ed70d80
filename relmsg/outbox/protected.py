"""The connection of an open transaction that will not commit behind the caller's back."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from relmsg.errors import TransactionRequired, UsageError
from relmsg.outbox.direct import Transaction

KEY = "relmsg.outbox.connection"


def known_connection(tx: Transaction) -> Connection | None:
    """The connection of ``tx``; None where a session was not asked for it yet, ``connection_of`` asks it.

    :raises TransactionRequired: there is no transaction, or the connection commits by itself (AUTOCOMMIT).
    """
    if isinstance(tx, AsyncSession):
        if not tx.sync_session.in_transaction():
            raise TransactionRequired(
                "this session has no transaction: publish inside `async with session.begin():`, or after the work that "
                "the message tells about, and commit both together"
            )
        known = tx.sync_session.info.get(KEY)
        transaction = _innermost(tx.sync_session)
        return known[1] if known is not None and known[0] is transaction and transaction.is_active else None
    require_transactional(tx)
    assert isinstance(tx, AsyncConnection)
    if not tx.in_transaction():
        raise TransactionRequired("this connection has no transaction: publish inside `async with tx.begin():`")
    assert tx.sync_connection is not None
    return _transactional(tx.sync_connection)


def require_transactional(tx: Transaction) -> None:
    """:raises UsageError: this is nothing that has transactions here."""
    if not isinstance(tx, AsyncSession | AsyncConnection):
        what = f"the class {tx.__name__}" if isinstance(tx, type) else f"a {type(tx).__name__}"
        raise UsageError(
            f"publish into an AsyncSession or an AsyncConnection, not {what}; for sync sessions execute "
            "outbox.insert(message)"
        )


def connection_of(session: Session) -> Connection:
    """The session's connection, asked for once a transaction and savepoint: asking for it begins a savepoint that was
    not begun yet, and costs as much as all the rest of a publish that is collected.

    :raises TransactionRequired: the connection commits by itself (AUTOCOMMIT).
    """
    connection = _transactional(session.connection())
    session.info[KEY] = (_innermost(session), connection)
    return connection


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _transactional(connection: Connection) -> Connection:
    # The driver's own flag: SQLAlchemy's get_isolation_level() asks the server, a round trip for every message.
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise TransactionRequired(
            "this connection is in AUTOCOMMIT: the message would be sent even if your work is rolled back"
        )
    return connection
