"""Reaching PostgreSQL: one way to make an engine, one place that tells what a failure means."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from relmsg.errors import AccessRefused, DatabaseAway, RelmsgError, SettingsError
from relmsg.settings import redact

CONNECT_SECONDS = 10.0

# SQLSTATEs (PostgreSQL documentation, appendix A) that are the server's state, not the statement's fault.
AWAY = {
    "57P01": "it is shutting down",
    "57P02": "it has crashed and restarts",
    "57P03": "it is starting up or shutting down",
    "57P05": "it closed an idle session",
    "53300": "it has no connection left: raise max_connections or use smaller pools",
}
REFUSED = {
    "28P01": "wrong user or password",
    "28000": "user, database or host are not allowed in (pg_hba.conf), or the user does not exist",
    "3D000": "there is no such database: create it first",
    "42501": "the user lacks a permission: have it granted, or use another user",
}


def normalised(url: str | URL) -> URL:
    """The URL with asyncpg as its driver and with libpq's ``sslmode`` under the name asyncpg knows, ``ssl``.

    :raises SettingsError: for a URL of another kind; the password is not shown.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # SQLAlchemy's own text would show the URL
        raise SettingsError("database_url: give postgresql+asyncpg://user:password@host:5432/database") from None
    if parsed.drivername not in ("postgresql", "postgresql+asyncpg"):
        raise SettingsError(f"database_url: relmsg needs postgresql+asyncpg://, not {parsed.drivername}://")
    query = dict(parsed.query)
    if "sslmode" in query:
        query.setdefault("ssl", query.pop("sslmode"))
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def create_engine(url: str | URL, **options: Any) -> AsyncEngine:
    """An engine for ``postgresql://`` or ``postgresql+asyncpg://``; options are those of ``create_async_engine``.

    A connection is given up after 10 s, and says ``relmsg`` in pg_stat_activity unless the URL names another
    ``application_name``. Nothing is connected yet.

    :raises SettingsError: for a URL of another kind.
    """
    parsed = normalised(url)
    query = dict(parsed.query)
    name = query.pop("application_name", "relmsg")
    connect_args: dict[str, Any] = dict(options.pop("connect_args", {}))
    connect_args.setdefault("timeout", CONNECT_SECONDS)
    connect_args["server_settings"] = {"application_name": str(name)} | dict(connect_args.get("server_settings", {}))
    if "timeout" in query:
        connect_args.pop("timeout")
    return create_async_engine(parsed.set(query=query), connect_args=connect_args, **options)


def translate(error: BaseException, url: str | URL | None = None) -> RelmsgError | None:
    """What an exception means, if it tells of the database's state and not of a statement; otherwise None.

    DatabaseAway (refused, time-out, unknown host, connection lost, server starting or stopping, no connection left)
    or AccessRefused (password, user, database, permission). An OSError or a time-out counts only if asyncpg raised
    it: one that a handler met on its own way to some other service is not about the database. With ``url`` the text
    names the server. The text is one line and holds no password.
    """
    if isinstance(error, DatabaseAway | AccessRefused):
        return error
    where = f"PostgreSQL at {_place(url)}" if url is not None else "PostgreSQL"
    code = _sqlstate(error)
    if code in REFUSED or (code or "").startswith("28"):
        return AccessRefused(f"{where} refused: {_line(error)}; {REFUSED.get(code or '', REFUSED['28000'])}")
    if code in AWAY:
        return DatabaseAway(f"{where} is not available: {_line(error)}; {AWAY[code]}")
    if (code or "").startswith("08") or _lost(error):
        return DatabaseAway(f"{where} does not answer: {_line(error)}; is it running, and are host and port right?")
    return None


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


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception as SQLAlchemy wraps it: DBAPIError, the driver's adapter (orig), asyncpg's own (its cause)."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.orig if isinstance(seen, DBAPIError) and seen.orig is not None else seen.__cause__


def _sqlstate(error: BaseException) -> str | None:
    if not isinstance(error, DBAPIError | asyncpg.PostgresError):
        return None
    codes = (getattr(each, "sqlstate", None) for each in _chain(error))
    return next((str(code) for code in codes if code), None)


def _lost(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        return any(_lost(inner) for inner in _chain(error) if not isinstance(inner, DBAPIError))
    if isinstance(error, asyncpg.PostgresConnectionError | asyncpg.InternalClientError):
        return True
    if isinstance(error, asyncpg.InterfaceError):  # "connection is closed", and wrong use of asyncpg: tell them apart
        return "closed" in str(error) or "released" in str(error)
    return isinstance(error, OSError | TimeoutError | ssl.SSLError) and _passed_asyncpg(error)


def _passed_asyncpg(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None:
        if str(frame.tb_frame.f_globals.get("__name__", "")).startswith("asyncpg."):
            return True
        frame = frame.tb_next
    return False


def _line(error: BaseException) -> str:
    if isinstance(error, DBAPIError):  # its own text is many lines, with the statement and its parameters
        error = list(_chain(error))[-1]
    text = " ".join(str(error).split())
    if not text and isinstance(error, TimeoutError):
        text = "no answer in time"
    return redact(text or type(error).__name__)


def _place(url: str | URL) -> str:
    parsed = normalised(url)
    host = parsed.host or parsed.query.get("host") or "localhost"
    return f"{host}:{parsed.port or 5432}/{parsed.database or ''}"
