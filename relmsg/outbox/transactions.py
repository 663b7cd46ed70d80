"""SQLAlchemy's events of an engine, handed to the ledgers of its connections."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from relmsg.outbox.ledger import Ledger, ledgers

_watched: WeakSet[Engine] = WeakSet()


def ledger_of(connection: Connection) -> Ledger:
    """The ledger of this connection's transaction, kept up from now on.

    :raises UsageError: as ``Ledger.of``.
    """
    known = ledgers.get(connection)
    if known is not None and known.noted():
        return known  # all that follows was done for this very transaction
    ledger = Ledger.of(connection)
    if connection.engine not in _watched:
        _watched.add(connection.engine)
        for name, listener in LISTENERS.items():
            event.listen(connection.engine, name, listener)
    return ledger


def _statement(
    connection: Connection, _cursor: object, statement: str, _parameters: object, context: object, _many: bool
) -> None:
    if (ledger := ledgers.get(connection)) is not None:
        ledger.statement(statement, context)


def _savepoint(connection: Connection, _name: str | None) -> None:
    if (ledger := ledgers.get(connection)) is not None:
        ledger.expect()


def _released(connection: Connection, name: str, _context: object) -> None:
    if (ledger := ledgers.get(connection)) is not None:
        ledger.release(name)


def _rolled_back_to(connection: Connection, name: str, _context: object) -> None:
    if (ledger := ledgers.get(connection)) is not None:
        ledger.roll_back_to(name)


def _commit(connection: Connection) -> None:
    if (ledger := ledgers.get(connection)) is not None:
        ledger.before_commit(connection)


def _rollback(connection: Connection) -> None:
    if (ledger := ledgers.get(connection)) is not None:
        ledger.drop()


def _error(context: ExceptionContext) -> None:
    if context.connection is not None and (ledger := ledgers.get(context.connection)) is not None:
        ledger.failed()


LISTENERS: dict[str, Any] = {
    "before_cursor_execute": _statement,
    "savepoint": _savepoint,
    "release_savepoint": _released,
    "rollback_savepoint": _rolled_back_to,
    "commit": _commit,
    "rollback": _rollback,
    "handle_error": _error,
}
