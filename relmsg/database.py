"""Reaching PostgreSQL: one way to make an engine."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from relmsg.db.pooler import Connector
from relmsg.db.search_path import SEARCH_PATH, SearchPath
from relmsg.errors import SettingsError

CONNECT_SECONDS = 10.0

# For sessions whose statements are transactions of their own: whatever the database or role has as its default. As
# serializable transactions the reads of a relay would make the commits of publishers fail.
READ_COMMITTED = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"


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
    """An engine for relmsg's own statements, on ``postgresql://`` or ``postgresql+asyncpg://``; options are those of
    ``create_async_engine``. Its ``search_path`` is ``pg_catalog``: name every table with its schema. For statements of
    your own take ``create_async_engine``.

    Its transactions are READ COMMITTED unless told otherwise, whatever the database or role has as its default. A
    connection is given up after 10 s, and says ``relmsg`` in pg_stat_activity unless the URL names another
    ``application_name``. The same URL works directly and through PgBouncer, in session and in transaction mode. Nothing
    is connected yet.

    :raises SettingsError: for a URL of another kind.
    """
    parsed = normalised(url)
    query = dict(parsed.query)
    name = query.pop("application_name", "relmsg")
    options.setdefault("isolation_level", "READ COMMITTED")
    options.setdefault("hide_parameters", True)  # bodies and headers of messages, in errors and in SQLAlchemy's log
    connector = Connector()
    connect_args: dict[str, Any] = connector.connect_args | dict(options.pop("connect_args", {}))
    connect_args.setdefault("timeout", CONNECT_SECONDS)
    connect_args["server_settings"] = {
        "application_name": str(name),
        **connect_args.get("server_settings", {}),
        "search_path": SEARCH_PATH,
    }
    if "timeout" in query:
        connect_args.pop("timeout")
    engine = create_async_engine(parsed.set(query=query), connect_args=connect_args, **options)
    SearchPath(connector).attach(engine)
    return engine


def read_committed_sessions(engine: AsyncEngine) -> None:
    """Have every new connection of an engine say READ COMMITTED for all that it does, also in AUTOCOMMIT."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.run_async(lambda raw: raw.execute(READ_COMMITTED))


def place(url: str | URL) -> str:
    """Host, port and database of a URL, as error messages name them."""
    parsed = normalised(url)
    host = parsed.host or parsed.query.get("host") or "localhost"
    return f"{host}:{parsed.port or 5432}/{parsed.database or ''}"
