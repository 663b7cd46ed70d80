"""Classifies database failures: one table from SQLSTATE and driver error to what they mean.

Everything that meets a database error asks here, so that relay, coordinator, consumer, producer and CLI agree::

    AWAY        the server or the network cannot do it now: wait, spend no attempt, count nothing against a message
    CONTENTION  another transaction was in the way, or the time allowed ran out: the same work can succeed at once
    THEIRS      the data or a rule of the user's refuses it: the same work fails again
    OURS        the statement itself is wrong: a bug where the statement is ours, the handler's where it is not
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final, TypeVar

import asyncpg
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from relmsg.database import place
from relmsg.db.values import without_values
from relmsg.errors import AccessRefused, DatabaseAway, RelmsgError, RowNotStored
from relmsg.exceptions import attribute, causes, own, text_of, type_name
from relmsg.settings import redact

BRIEF_CHARACTERS = 500

_Meant = TypeVar("_Meant")


class FailureKind(Enum):
    """What a failure of the database means for the work that met it."""

    AWAY = "away"
    CONTENTION = "contention"
    THEIRS = "theirs"
    OURS = "ours"


AWAY, CONTENTION, THEIRS, OURS = FailureKind.AWAY, FailureKind.CONTENTION, FailureKind.THEIRS, FailureKind.OURS

# PostgreSQL documentation, appendix A. A code that is not named here follows its class, the first two characters.
KINDS: Final[dict[str, FailureKind]] = {
    "08": AWAY,  # connection exception; PgBouncer tells all of its own troubles as 08P01
    "09": THEIRS,  # a trigger of the user's
    "0A": OURS,  # feature not supported
    "0L": OURS,
    "0P": OURS,
    "21": OURS,  # cardinality violation
    "22": THEIRS,  # data exception
    "23": THEIRS,  # integrity constraint violation
    "24": OURS,
    "25": THEIRS,  # invalid transaction state: somebody else's statement stood in ours
    "25006": AWAY,  # the server is read-only, as an old primary is after a failover
    "25P03": AWAY,  # idle_in_transaction_session_timeout has ended the session
    "25P04": AWAY,  # transaction_timeout has (PostgreSQL 17)
    "26": AWAY,  # a prepared statement is gone: a pooler has given us another server connection
    "27": THEIRS,
    "28": OURS,  # login refused; `translate` makes AccessRefused of it
    "38": THEIRS,
    "39": THEIRS,
    "3D": OURS,
    "3F": OURS,
    "40": CONTENTION,  # transaction rollback
    "40002": THEIRS,  # by a constraint
    "40003": AWAY,  # whether the statement took effect is unknown
    "42": OURS,  # syntax error, unknown table, missing permission
    "42P05": AWAY,  # a prepared statement exists already: a pooler, as with 26
    "44": THEIRS,
    "53": AWAY,  # insufficient resources: disk full, out of memory, too many connections
    "54": THEIRS,  # program limit exceeded: a value that is too large
    "55": THEIRS,  # object not in prerequisite state
    "55006": CONTENTION,  # object in use
    "55P03": CONTENTION,  # lock_timeout
    "57": AWAY,  # operator intervention: shutting down, starting, session ended by an administrator
    "57014": CONTENTION,  # statement_timeout, or the statement was cancelled
    "58": AWAY,  # system error: I/O
    "72": CONTENTION,  # snapshot too old
    "F0": AWAY,
    "HV": AWAY,  # a foreign data wrapper's server
    "P0": THEIRS,  # RAISE in a function or trigger of the user's
    "XX": AWAY,  # internal error, damaged data or index
}

# Of THEIRS, the classes that speak of one row, so that another row can pass: its values cannot be stored at all (data
# exceptions, values too large for an index), or a rule of the user's forbids them (constraint, view, trigger).
VALUES: Final = ("22", "54")
RULES: Final = ("23", "44", "P0")

# What to tell besides the server's own text.
HINTS: Final[dict[str, str]] = {
    "25006": "it is read-only, as a standby is: does the URL lead to the primary?",
    "25P03": "idle_in_transaction_session_timeout has ended the session",
    "25P04": "transaction_timeout has ended the session",
    "26": "a pooler shares its connections: use the URL that docs/operations.md gives for PgBouncer",
    "42P05": "a pooler shares its connections: use the URL that docs/operations.md gives for PgBouncer",
    "53100": "its disk is full",
    "53200": "it is out of memory",
    "53300": "it has no connection left: raise max_connections or use smaller pools",
    "57P01": "it is shutting down, or an administrator has ended the session",
    "57P02": "it has crashed and restarts",
    "57P03": "it is starting up or shutting down",
    "57P04": "the database was dropped",
    "57P05": "it closed an idle session",
}

REFUSED: Final[dict[str, str]] = {
    "28P01": "wrong user or password",
    "28": "user, database or host are not allowed in (pg_hba.conf), or the user does not exist",
    "3D": "there is no such database: create it first",
    "42501": "the user lacks a permission: have it granted, or use another user",
}


def failure_kind(error: BaseException) -> FailureKind | None:
    """What an exception means if it, or anything it contains or came from, tells of the database; otherwise None.

    AWAY and CONTENTION count wherever they stand among the causes, CONTENTION first: a handler that wraps such an error
    in one of its own is still told apart from one that fails. An OSError or a time-out counts only if the driver raised
    it: one that a handler met on its way to some other service tells nothing of the database.
    """
    kinds = [kind for each in _each(error) if (kind := _kind_of_one(each)) is not None]
    return next(
        (kind for wanted in (CONTENTION, AWAY) for kind in kinds if kind is wanted), kinds[0] if kinds else None
    )


def is_away(error: BaseException) -> bool:
    """Whether an error tells of the database's state, and nothing of the message that met it."""
    return failure_kind(error) is AWAY


def is_contention(error: BaseException) -> bool:
    """Whether other transactions were in the way: trying again helps, whatever a retry policy says of errors."""
    return failure_kind(error) is CONTENTION


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's five letter code, from SQLAlchemy's exception or from the driver's; None for any other error."""
    told = _drivers(error) if isinstance(error, DBAPIError) else error
    code = attribute(told, "sqlstate") if isinstance(told, Exception) else None
    return code if type(code) is str and len(code) == 5 else None


def refuses_values(error: BaseException) -> bool:
    """Whether this exception, its causes left aside, says that the values of one row can never be stored."""
    return (sqlstate(error) or "").startswith(VALUES)


def refuses_row(error: BaseException) -> bool:
    """Whether it says that one row is refused, for its values or by a rule of the user's. The rule may refuse others
    as well."""
    return (sqlstate(error) or "").startswith(VALUES + RULES)


def may_concern_one(error: BaseException) -> bool:
    """Whether a server that works has refused the statement, by a rule of the user's or for what it is. For another row
    the same statement may pass: a trigger can raise any code."""
    return failure_kind(error) in (THEIRS, OURS)


def translate(error: BaseException, url: str | URL | None = None) -> RelmsgError | None:
    """The relmsg error for the state of the database, with the server's name if a URL is given; otherwise None.

    DatabaseAway for what is AWAY, AccessRefused for a refused login, database or permission. None for contention and
    for statements that are wrong or refused. The text is one line and holds no password.
    """
    if isinstance(error, DatabaseAway | AccessRefused):
        return error
    where = f"PostgreSQL at {place(url)}" if url is not None else "PostgreSQL"
    for each in _each(error):
        code = sqlstate(each) or ""
        if (refusal := _of(REFUSED, code)) is not None:
            return AccessRefused(f"{where} refused: {_line(error)}; {refusal}")
        if _kind_of_one(each) is AWAY:
            if code and not code.startswith("08"):
                hint = _of(HINTS, code)
                return DatabaseAway(f"{where} is not available: {_line(error)}{f'; {hint}' if hint else ''}")
            return DatabaseAway(f"{where} does not answer: {_line(error)}; is it running, and are host and port right?")
    return None


def waited_for(error: BaseException) -> DatabaseAway | None:
    """DatabaseAway for a failure of a statement of ours that passes without a change to relmsg; otherwise None.

    A process that runs by itself waits for all of these: a server that is away, another transaction in the way, a
    trigger or setting of the user's, and a permission that was taken away. None is left for a statement that is wrong,
    and for what tells nothing of the database: both are bugs.
    """
    meant = translate(error)
    if isinstance(meant, DatabaseAway):
        return meant
    if meant is None and failure_kind(error) in (None, OURS):
        return None
    return DatabaseAway(str(meant or f"PostgreSQL refuses a statement of relmsg: {_line(error)}"))


def is_refusal(error: BaseException) -> bool:
    """Whether a statement of ours was refused for what it writes, by a constraint or a trigger of the user's: for
    other rows the same statement may pass. Takes DatabaseAway as ``waited_for`` makes it."""
    told = error.__cause__ if isinstance(error, DatabaseAway) else error
    return told is not None and not isinstance(told, DatabaseAway) and failure_kind(told) is THEIRS


@contextmanager
def translated(url: str | URL | None = None) -> Iterator[None]:
    """Raise what ``translate`` makes of an exception in its place, with the exception as its cause."""
    try:
        yield
    except Exception as error:
        meant = translate(error, url)
        if meant is None or meant is error:
            raise
        raise meant from error


def brief(error: BaseException) -> str:
    """An error on one line of at most 500 characters, without statements, parameters or passwords."""
    return _line(translate(error) or error)


def named(error: BaseException) -> str:
    """An error on one line, with its class before it unless it is one of ours: ``KeyError: 'id'``."""
    told = brief(error)
    return told if isinstance(error, RelmsgError) else f"{type_name(error)}: {told}"


def _kind_of_one(error: BaseException) -> FailureKind | None:
    """What this exception alone tells, its causes left aside."""
    if isinstance(error, DatabaseAway):
        return AWAY
    if isinstance(error, RowNotStored):
        return THEIRS
    if isinstance(error, PoolTimeout):  # all connections of the pool are in use
        return CONTENTION
    if isinstance(error, asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError):
        return CONTENTION  # the tables were altered under a plan; the driver has dropped it
    if isinstance(error, DBAPIError) and attribute(error, "connection_invalidated") is True:
        return _of(KINDS, sqlstate(error) or "") or AWAY
    code = sqlstate(error)
    if code is not None:
        return _of(KINDS, code) or OURS
    if _is_lost(error):
        return AWAY
    return OURS if isinstance(error, DBAPIError | asyncpg.PostgresError | asyncpg.InterfaceError) else None


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.InternalClientError):
        return True
    if isinstance(error, asyncpg.InterfaceError):  # "connection is closed", and wrong use of asyncpg: tell them apart
        text = text_of(error)
        return "closed" in text or "released" in text
    return isinstance(error, OSError | TimeoutError | ssl.SSLError) and _passed_asyncpg(error)


def _passed_asyncpg(error: BaseException) -> bool:
    frame = own(error, "__traceback__")
    while frame is not None:
        if str(frame.tb_frame.f_globals.get("__name__", "")).startswith("asyncpg."):
            return True
        frame = frame.tb_next
    return False


def _each(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, with the driver's own error behind each of SQLAlchemy's."""
    for each in causes(error):
        yield each
        if isinstance(each, DBAPIError) and (driver := _drivers(each)) is not None:
            yield from causes(driver)


def _first(error: DBAPIError) -> BaseException:
    """The driver's error that the others were made of. What was being handled meanwhile has nothing to do with it."""
    found: BaseException = error
    following, seen = _drivers(error), set[int]()
    while following is not None and id(following) not in seen and not isinstance(following, DBAPIError):
        found = following
        seen.add(id(found))
        following = own(found, "__cause__")
    return found


def _drivers(error: DBAPIError) -> BaseException | None:
    """The driver's error behind one of SQLAlchemy's. By its class: it may say anything of itself."""
    driver = attribute(error, "orig")
    return driver if issubclass(type(driver), BaseException) else None  # type: ignore[return-value]


def _of(table: dict[str, _Meant], code: str) -> _Meant | None:
    return table.get(code, table.get(code[:2])) if code else None


def _line(error: BaseException) -> str:
    """The text of the driver's own error, on one line: SQLAlchemy's holds the statement and its parameters."""
    if isinstance(error, DBAPIError):
        error = _first(error)
    text = " ".join(without_values(text_of(error, 2 * BRIEF_CHARACTERS)).split())
    if not text and isinstance(error, TimeoutError):
        text = "no answer in time"
    shown = redact(text or type_name(error))
    return shown if len(shown) <= BRIEF_CHARACTERS else shown[: BRIEF_CHARACTERS - 1] + "…"
