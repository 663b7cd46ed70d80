"""Whose fault is it? A failed message is tried a few times; a database that is away is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from sqlalchemy.exc import DBAPIError

from relmsg.database import translate
from relmsg.errors import DatabaseAway, RelmsgError
from relmsg.settings import redact

# PostgreSQL documentation, appendix A. Class 53 is "insufficient resources": disk full, out of memory, too many
# connections. 25006: the server has become read-only, as the old primary does after a failover.
RESOURCES = "53"
READ_ONLY = "25006"
CONTENTION = frozenset({"40001", "40P01", "55P03"})  # could not serialise, deadlock, lock not available


def is_away(error: BaseException) -> bool:
    """Whether an error tells of the database's state, and nothing of the message.

    An exception that a handler raised ``from`` such an error counts as well. Only database errors do: a handler's own
    OSError, from its call of some other service, is a failure of the handler.
    """
    for each in _causes(error):
        code = sqlstate(each) or ""
        if code in CONTENTION:
            return False
        if code == READ_ONLY or code.startswith(RESOURCES) or isinstance(translate(each), DatabaseAway):
            return True
    return False


def is_contention(error: BaseException) -> bool:
    """Whether two transactions were in each other's way: trying again helps, whatever a retry policy says."""
    return any(sqlstate(each) in CONTENTION for each in _causes(error))


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's five letter code, from SQLAlchemy's exception or from the driver's; None for any other error."""
    told = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(told, "sqlstate", None)
    return code if isinstance(code, str) else None


class _Answering:
    """Written out: as a generator it would cost each message more than the clock that it sets."""

    __slots__ = ("_limit", "_within")

    def __init__(self, within: float) -> None:
        self._within = within
        self._limit = asyncio.timeout(within)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise DatabaseAway(f"PostgreSQL has not answered for {self._within:g} s") from late


def answering(within: float) -> AbstractAsyncContextManager[None]:
    """Bound the wait for statements of ours: a network that swallows packets never raises anything by itself.

    :raises DatabaseAway: no answer within so many seconds.
    """
    return _Answering(within)


def brief(error: BaseException) -> str:
    """An error on one line, without statements, parameters or passwords."""
    told = translate(error) or (error.orig if isinstance(error, DBAPIError) else None) or error
    return redact(" ".join(str(told).split()) or type(told).__name__)


def named(error: BaseException) -> str:
    """An error on one line, with its class before it unless it is one of ours: ``KeyError: 'id'``."""
    told = brief(error)
    return told if isinstance(error, RelmsgError) else f"{type(error).__name__}: {told}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
