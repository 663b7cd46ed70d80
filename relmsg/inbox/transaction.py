"""The handler's transaction, which is not the handler's to end."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from relmsg.db.failures import sqlstate
from relmsg.exceptions import causes
from relmsg.inbox.outcome import HandlerEndedTransaction, StatementSwallowed

FAILED_TRANSACTION = "25P02"
ENDING = re.compile(
    r"\s*(?:COMMIT|END|ABORT|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO))\b", re.I
)

# Whose turn it is, for the listeners on the engines and session classes we have met: one that is added and removed for
# each message would cost more than the handler's statement.
_turns: WeakKeyDictionary[Connection, HandlersTurn] = WeakKeyDictionary()
_of_session: WeakKeyDictionary[Session, HandlersTurn] = WeakKeyDictionary()
_watched: WeakSet[Engine | type[Session]] = WeakSet()


class Opened:
    """A session of the user's making, for one transaction of ours.

    It is closed as ``async with`` closes it, which takes a task of its own so that no cancellation comes in between;
    where the transaction has ended there is nothing left to protect, and none is made.
    """

    __slots__ = ("_session", "_sessions")

    def __init__(self, sessions: async_sessionmaker[Any]) -> None:
        self._sessions = sessions

    async def __aenter__(self) -> AsyncSession:
        session: AsyncSession = self._sessions()
        self._session = session
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session.in_transaction():
            await self._session.__aexit__(kind, error, trace)
        else:
            await self._session.close()


class HandlersTurn:
    """While it is entered, handlers work in our transaction and cannot commit it; savepoints are their own.

    A commit is refused, through the session, the connection, or as the text of a statement. A rollback through the
    session cannot be refused, only noticed; ``check`` does so afterwards, and has to be called after every handler.
    """

    def __init__(self, session: AsyncSession, transaction: SessionTransaction, connection: Connection) -> None:
        self._session = session
        self._sync = session.sync_session
        self._ours = transaction
        self._connection = connection
        self._refused = False
        driver: Any = connection.connection.driver_connection
        # asyncpg; other drivers cannot be asked
        self._in_transaction: Callable[[], bool] | None = getattr(driver, "is_in_transaction", None)
        self.is_lent = False
        """Whether a handler has asked the session for its connection: then ``prove`` before the commit."""
        self.database_error: BaseException | None = None
        """The last error of a statement in this turn, whether or not the handler let it through."""
        self.flush_error: BaseException | None = None
        """The error of a flush with which SQLAlchemy has rolled the transaction back, by itself."""
        self.was_checked = False
        """Whether ``check`` has run. Until it has, the session holds no objects: ``is_untouched`` has seen that."""

    def __enter__(self) -> Self:
        _watch(self._connection.engine, type(self._sync))
        _turns[self._connection] = self
        _of_session[self._sync] = self
        # Only the session itself can tell that somebody has asked it for its connection, behind which is the driver's.
        self._sync.connection = self._lend  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._sync.connection
        del _of_session[self._sync]
        del _turns[self._connection]

    def is_untouched(self) -> bool:
        """Whether ``check`` would find nothing, which is most often so and told without a coroutine of its own."""
        return (
            self.database_error is None
            and not self._refused
            and self._sync.get_transaction() is self._ours
            and self._ours.is_active
            and (self._in_transaction is None or self._in_transaction())
            and not self.has_objects()
        )

    async def check(self) -> None:
        """Write what is pending, and see whether our commit would still commit everything.

        A failed statement has PostgreSQL answer COMMIT with a rollback, *without an error*: a handler that swallows the
        statement's exception would get its message acked with nothing done. So after any error one more statement is
        sent; it succeeds only where a savepoint has healed the transaction.

        :raises HandlerEndedTransaction: the handler has committed, rolled back or closed.
        :raises Exception: a statement or a flush has failed, and the transaction with it.
        """
        self.was_checked = True
        sync = self._sync
        if self._is_ended():
            raise HandlerEndedTransaction from self._failure
        if not self._ours.is_active:
            raise self._failure or HandlerEndedTransaction()
        if self.has_objects() and (sync.new or sync.deleted or sync.identity_map.check_modified()):
            await self._session.flush()
        swallowed = self.database_error
        if swallowed is not None:
            try:
                await self._ask()
            except DBAPIError as error:
                raise (swallowed if sqlstate(error) == FAILED_TRANSACTION else error) from None
            self.database_error = None

    async def prove(self) -> None:
        """Before the commit: make sure that it can be one. To be called once for all handlers of a transaction.

        What a handler does on the driver's own connection, past SQLAlchemy, may fail without a word to us, and then too
        PostgreSQL answers COMMIT with a rollback and no error. So one more statement is sent.

        :raises StatementSwallowed: a statement has failed, and a handler has let that pass.
        """
        try:
            await self._ask()
        except DBAPIError as error:
            if sqlstate(error) != FAILED_TRANSACTION:
                raise
            raise StatementSwallowed from error

    async def _ask(self) -> None:
        await self._session.run_sync(lambda _: self._connection.execute(text("SELECT 1")))

    def explained(self, error: BaseException) -> BaseException:
        """An error of the handler's, or the one behind it that says more.

        After a statement or a flush has failed, all that follows in the transaction fails too, and says only that:
        then the first error is the real one, though the handler may have let it pass.
        """
        if isinstance(error, HandlerEndedTransaction):
            return error
        if self.was_ended_unseen():
            ended = HandlerEndedTransaction()
            ended.__cause__ = error
            return ended
        first = self._failure
        if first is None or any(each is first for each in causes(error)):
            return error
        if _only_follows(error):
            return first
        for each in causes(error):
            if _only_follows(each) and each.__cause__ is None:
                each.__cause__ = first
        return error

    @property
    def _failure(self) -> BaseException | None:
        return self.flush_error or self.database_error

    def has_objects(self) -> bool:
        """Whether the session knows any object, new, loaded or to be deleted. It knows none where handlers only send
        statements, and that is told quicker than each of these by itself."""
        return next(iter(self._sync), None) is not None

    def was_ended_unseen(self) -> bool:
        """Whether SQLAlchemy believes in the transaction and PostgreSQL does not: it was ended on the driver's own
        connection, past SQLAlchemy."""
        if self._sync.get_transaction() is not self._ours or not self._ours.is_active:
            return False  # a failed flush has SQLAlchemy roll back, and wait for the session to be told so
        if self._connection.closed or self._connection.invalidated:
            return False  # the connection is gone, and the transaction with it: nobody ended it
        driver: Any = self._connection.connection.driver_connection
        in_transaction = getattr(driver, "is_in_transaction", None)  # asyncpg; other drivers cannot be asked
        return in_transaction is not None and not driver.is_closed() and not in_transaction()

    def is_gone(self) -> bool:
        """Whether the connection of this transaction is gone."""
        return _is_gone(self._connection)

    def is_lost(self) -> bool:
        """Whether the connection of this transaction is gone, while those of all other handlers still stand."""
        others = [each for each in _turns if each is not self._connection]
        return _is_gone(self._connection) and not any(map(_is_gone, others))

    def _lend(self, *arguments: Any, **options: Any) -> Connection:
        self.is_lent = True
        return type(self._sync).connection(self._sync, *arguments, **options)

    def _is_ended(self) -> bool:
        return self._refused or self._sync.get_transaction() is not self._ours or self.was_ended_unseen()

    def rolled_back(self, error: BaseException | None) -> None:
        """SQLAlchemy has rolled a transaction of the session back, while it handled this error."""
        if error is not None and not self._ours.is_active and not isinstance(error, asyncio.CancelledError):
            self.flush_error = error

    def refuse(self) -> None:
        """:raises HandlerEndedTransaction: always; and it stays refused, should the handler swallow that."""
        self._refused = True
        raise HandlerEndedTransaction


def _is_gone(connection: Connection) -> bool:
    if connection.closed or connection.invalidated:
        return True
    is_closed = getattr(connection.connection.driver_connection, "is_closed", None)  # asyncpg
    return is_closed is not None and bool(is_closed())


def _watch(engine: Engine, session_class: type[Session]) -> None:
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "handle_error", _remember)
        event.listen(engine, "commit", _refuse_on_connection)
        event.listen(engine, "before_cursor_execute", _refuse_as_text)
    if session_class not in _watched:
        _watched.add(session_class)
        event.listen(session_class, "before_commit", _refuse_on_session)
        event.listen(session_class, "after_soft_rollback", _remember_rollback)


def _remember(context: ExceptionContext) -> None:
    turn = _turns.get(context.connection) if context.connection is not None else None
    if turn is not None:
        error = context.sqlalchemy_exception or context.original_exception
        if turn.database_error is None or not _only_follows(error):
            turn.database_error = error


def _remember_rollback(session: Session, _: SessionTransaction) -> None:
    turn = _of_session.get(session)
    if turn is not None:
        turn.rolled_back(sys.exception())


def _only_follows(error: BaseException) -> bool:
    """Whether an error says no more than that the transaction had failed before."""
    return isinstance(error, PendingRollbackError) or sqlstate(error) == FAILED_TRANSACTION


def _refuse_on_session(session: Session) -> None:
    turn = _of_session.get(session)
    if turn is not None and not session.in_nested_transaction():
        turn.refuse()


def _refuse_on_connection(connection: Connection) -> None:
    turn = _turns.get(connection)
    if turn is not None:
        # SQLAlchemy takes its transaction for ended whether or not this raises, and would give the connection back to
        # the pool with PostgreSQL's still open.
        connection.connection.rollback()
        turn.refuse()


def _refuse_as_text(connection: Connection, _: object, statement: str, *__: object) -> None:
    if ENDING.match(statement) is not None:
        turn = _turns.get(connection)
        if turn is not None:
            turn.refuse()
