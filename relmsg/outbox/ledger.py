"""What the open transaction of a connection has published so far, savepoints included.

SQLAlchemy's Core tells of every savepoint, commit and rollback, whoever asked for it: a session, a connection, or a
session joined to somebody else's transaction. So the ledger follows the connection, never the session.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, TwoPhaseTransaction

from relmsg.errors import UsageError
from relmsg.exceptions import trace_of
from relmsg.outbox.commit_watch import CommitWatch
from relmsg.outbox.insert import Insertion, SealedRow

log = logging.getLogger(__name__)

Wake = Callable[[], object]

TRANSACTION_CONTROL = re.compile(
    r"\s*(COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b", re.IGNORECASE
)
WRITTEN = (None,)  # what stands for rows that have been written already: one is enough, someone is to be woken
ledgers: WeakKeyDictionary[Connection, Ledger] = WeakKeyDictionary()


class Ledger:
    """The publishes of one transaction, in their order: rows that are still to be written, and who is to be woken.

    Just before the COMMIT the rows are written, one statement a schema; an error there fails the commit. After the
    COMMIT everyone is woken, once. A rollback, of all or to a savepoint, drops what was published since.
    """

    def __init__(self) -> None:
        self._call_off: Callable[[], None] = _nothing
        self._driver: Any = None
        self._entries: list[tuple[Insertion, SealedRow | None, Wake | None]] = []
        self._savepoints: list[tuple[str, int]] = []
        self._begun = self._failed = self._expects = False
        self._context: object = None

    @staticmethod
    def of(connection: Connection) -> Ledger:
        """The ledger of the connection's open transaction.

        :raises UsageError: the driver is not asyncpg, which alone can be asked when a COMMIT is through; or the
            transaction is a two-phase one.
        """
        if connection.dialect.driver != "asyncpg":
            raise UsageError(
                f"Outbox(collect=…, wake=…) works through asyncpg, not {connection.dialect.driver}: leave them out"
            )
        if isinstance(connection.get_transaction(), TwoPhaseTransaction):
            raise UsageError("Outbox(collect=…, wake=…) does not work in a two-phase transaction: leave them out")
        ledger = ledgers.get(connection)
        if ledger is None:
            ledger = ledgers[connection] = Ledger()
        return ledger

    def publish(
        self, connection: Connection, insertion: Insertion, rows: Sequence[SealedRow | None], wake: Wake | None
    ) -> None:
        """Note publishes; a row that is None has been written already."""
        if not self._begun:
            self._driver = connection.connection.driver_connection
            self._begun = self._driver.is_in_transaction()
        self._entries += [(insertion, row, wake) for row in rows]

    def noted(self) -> bool:
        """Whether the open transaction has published anything."""
        return bool(self._entries)

    def statement(self, statement: str, context: object) -> None:
        """SQLAlchemy is about to send this. A savepoint of its own gets its name here.

        :raises UsageError: it is transaction control that SQLAlchemy knows nothing of, and rows are not yet written.
        """
        if context is self._context:
            return  # told twice, by an engine and by the one it was made from
        found = TRANSACTION_CONTROL.match(statement)
        if found is None:
            return
        self._context = context
        if self._expects:
            self._expects = False
            if found[1].upper() == "SAVEPOINT":
                self._savepoints.append((statement.split()[1], len(self._entries)))
        elif self._unwritten():
            raise UsageError(
                f"{found[1].upper()} was sent as a statement, while messages are collected that are not yet written: "
                "use commit(), rollback() and begin_nested() of the session or connection"
            )

    def expect(self) -> None:
        """The next transaction control is SQLAlchemy's own."""
        self._expects = True

    def release(self, name: str) -> None:
        """What was published inside the savepoint belongs to what surrounds it."""
        self._expects = True
        self._close(name)

    def roll_back_to(self, name: str) -> None:
        """What was published since the savepoint never was."""
        self._expects = True
        # A savepoint that is not known is older than everything here.
        del self._entries[self._close(name) :]
        self._failed = False

    def failed(self) -> None:
        """A statement has failed: unless a savepoint heals it, PostgreSQL answers the COMMIT with a rollback."""
        self._failed = True

    def before_commit(self, connection: Connection) -> None:
        """Write what is to be written, and wake when the COMMIT is through."""
        entries, failed = self._entries, self._failed
        self._clear()
        rows: dict[Insertion, list[SealedRow]] = {}
        for insertion, row, _ in entries:
            if row is not None:
                rows.setdefault(insertion, []).append(row)
        try:
            for insertion, each in rows.items():
                insertion.write_sync(connection, each)
        except BaseException:
            _roll_back(connection)
            raise
        wakes: list[Wake] = []
        for wake in map(itemgetter(2), entries):
            if wake is not None and wake not in wakes:
                wakes.append(wake)
        if wakes and not failed:
            self._call_off()
            self._call_off = CommitWatch(self._driver, lambda: _call(wakes)).call_off

    def drop(self) -> None:
        """The transaction is rolled back, and with it all that was published.

        Where it had been committed behind SQLAlchemy's back, on the driver's own connection, what was not yet written
        is lost; that is told.
        """
        self._call_off()
        lost = self._unwritten()
        if lost and self._begun and not self._driver.is_closed() and not self._driver.is_in_transaction():
            log.error(
                "%d collected messages were not written: their transaction was ended on the driver's connection. If it "
                "was committed there they are lost: commit through the session or the connection",
                lost,
            )
        self._clear()

    def _clear(self) -> None:
        self._entries, self._savepoints = [], []
        self._begun = self._failed = self._expects = False
        self._context = None

    def _unwritten(self) -> int:
        return sum(1 for _, row, _ in self._entries if row is not None)

    def _close(self, name: str) -> int:
        """Forget a savepoint and those inside it; returns how many entries are older."""
        for position, (each, entries) in enumerate(self._savepoints):
            if each == name:
                del self._savepoints[position:]
                return entries
        return 0


def _roll_back(connection: Connection) -> None:
    """SQLAlchemy takes a transaction whose commit has begun for ended: after an error here it would give the connection
    back to its pool as it is, with the failed transaction open.
    """
    if connection.invalidated:
        return
    try:
        connection.connection.rollback()
    except Exception:  # noqa: BLE001 - the first error is the one to tell
        connection.invalidate()


def _nothing() -> None:
    return


def _call(wakes: Sequence[Wake]) -> None:
    for wake in wakes:
        try:
            wake()
        except Exception as error:  # noqa: BLE001 - the user's code
            log.error(
                "Outbox(wake=…) raised; the messages are committed, the relay's next poll finds them\n%s",
                trace_of(error),
            )
