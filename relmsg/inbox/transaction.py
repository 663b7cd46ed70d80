"""The handler's transaction, which is not the handler's to end."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.orm import Session

from relmsg.inbox.outcome import HandlerEndedTransaction
from relmsg.inbox.trouble import sqlstate

FAILED_TRANSACTION = "25P02"

# Whose turn it is on a connection, for the listener on the engines we have met.
_turns: WeakKeyDictionary[Connection, HandlersTurn] = WeakKeyDictionary()
_watched: WeakSet[Engine] = WeakSet()


class HandlersTurn:
    """While it is entered, a handler works in our transaction and cannot commit it; savepoints are its own.

    A rollback cannot be refused, only noticed; ``check`` does so afterwards.
    """

    def __init__(self, session: AsyncSession, transaction: AsyncSessionTransaction, connection: Connection) -> None:
        self._session = session
        self._ours = transaction.sync_transaction
        self._connection = connection
        self._refused = False
        self.database_error: BaseException | None = None
        """The last error of a statement in this turn, whether or not the handler let it through."""

    def __enter__(self) -> Self:
        _watch(self._connection.engine)
        _turns[self._connection] = self
        event.listen(self._session.sync_session, "before_commit", self._refuse)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        event.remove(self._session.sync_session, "before_commit", self._refuse)
        del _turns[self._connection]

    async def check(self) -> None:
        """Write what is pending, and see whether our commit would still commit everything.

        A failed statement has PostgreSQL answer COMMIT with a rollback, *without an error*: a handler that swallows the
        statement's exception would get its message acked with nothing done. So after any error one more statement is
        sent; it succeeds only where a savepoint has healed the transaction.

        :raises HandlerEndedTransaction: the handler has committed, rolled back or closed.
        :raises DBAPIError: a statement has failed, and the transaction with it.
        """
        if self._refused or self._session.sync_session.get_transaction() is not self._ours or self.was_ended_unseen():
            raise HandlerEndedTransaction
        await self._session.flush()
        swallowed = self.database_error
        if swallowed is not None:
            connection = await self._session.connection()
            try:
                await connection.execute(text("SELECT 1"))
            except DBAPIError as error:
                raise (swallowed if sqlstate(error) == FAILED_TRANSACTION else error) from None

    def was_ended_unseen(self) -> bool:
        """Whether SQLAlchemy believes in the transaction and PostgreSQL does not: the handler sent a COMMIT as text."""
        if self._session.sync_session.get_transaction() is not self._ours:
            return False
        if self._connection.closed or self._connection.invalidated:
            return False  # the connection is gone, and the transaction with it: nobody ended it
        driver: Any = self._connection.connection.driver_connection
        in_transaction = getattr(driver, "is_in_transaction", None)  # asyncpg; other drivers cannot be asked
        return in_transaction is not None and not driver.is_closed() and not in_transaction()

    def _refuse(self, session: Session) -> None:
        if not session.in_nested_transaction():
            self._refused = True
            raise HandlerEndedTransaction


def _watch(engine: Engine) -> None:
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "handle_error", _remember)


def _remember(context: ExceptionContext) -> None:
    turn = _turns.get(context.connection) if context.connection is not None else None
    if turn is not None:
        turn.database_error = context.sqlalchemy_exception or context.original_exception
