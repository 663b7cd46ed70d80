"""Reaching PostgreSQL: one way to make an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from relmsg.db.login import Login, normalised
from relmsg.db.pooler import UNTIL_VANISHED, Connector
from relmsg.db.search_path import SEARCH_PATH, SearchPath, is_set_by_statement

__all__ = ["CONNECT_SECONDS", "READ_COMMITTED", "create_engine", "normalised", "place", "read_committed_sessions"]

CONNECT_SECONDS = 10.0

# For sessions whose statements are transactions of their own: whatever the database or role has as its default. As
# serializable transactions the reads of a relay would make the commits of publishers fail.
READ_COMMITTED = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"


def create_engine(url: str | URL | Callable[[], str], **options: Any) -> AsyncEngine:
    """An engine for relmsg's own statements, on ``postgresql://`` or ``postgresql+asyncpg://``; options are those of
    ``create_async_engine``. Its ``search_path`` is ``pg_catalog``: name every table with its schema. For statements of
    your own take ``create_async_engine``.

    Its transactions are READ COMMITTED unless told otherwise, whatever the database or role has as its default. A
    connection is given up after 10 s, and says ``relmsg`` in pg_stat_activity unless the URL names another
    ``application_name``. It asks the server to end a session whose network is silent for 60 s, and one that is idle in
    a transaction for as long.

    ``sslmode``, ``sslrootcert``, ``sslcert``, ``sslkey`` and ``sslcrl`` in the URL mean what they mean to libpq. A
    function is asked for the URL before each new connection, and the files are read anew: for what is rotated. The same
    URL works directly and through PgBouncer, in session and in transaction mode. Nothing is connected yet.

    :raises SettingsError: for a URL of another kind, for a file that is not there, and for a plain connection over a
        network where ``RELMSG_REQUIRE_TLS`` is on; otherwise such a one is warned of once.
    """
    login = Login(url)
    query = dict(login.url.query)
    name = query.pop("application_name", "relmsg")
    options.setdefault("isolation_level", "READ COMMITTED")
    options.setdefault("hide_parameters", True)  # bodies and headers of messages, in errors and in SQLAlchemy's log
    connector = Connector()
    connect_args: dict[str, Any] = connector.connect_args | dict(options.pop("connect_args", {}))
    connect_args.setdefault("timeout", CONNECT_SECONDS)
    connect_args["server_settings"] = {
        "application_name": str(name),
        **UNTIL_VANISHED,
        **connect_args.get("server_settings", {}),
        "search_path": SEARCH_PATH,
    }
    if "timeout" in query:
        connect_args.pop("timeout")
    if login.ssl is not None:
        connect_args.setdefault("ssl", login.ssl)
    engine = create_async_engine(login.url.set(query=query), connect_args=connect_args, **options)
    SearchPath(connector).attach(engine)
    login.attach(engine)
    return engine


def read_committed_sessions(engine: AsyncEngine) -> None:
    """Have every new connection of an engine say READ COMMITTED for all that it does, also in AUTOCOMMIT.

    Not through a pooler: the session is shared with others. There each transaction says it, and nothing is done in
    AUTOCOMMIT (``is_set_by_statement``).
    """

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        if not is_set_by_statement(engine):
            connection.run_async(lambda raw: raw.execute(READ_COMMITTED))


def place(url: str | URL) -> str:
    """Host, port and database of a URL, as error messages name them."""
    parsed = normalised(url)
    host = parsed.host or parsed.query.get("host") or "localhost"
    return f"{host}:{parsed.port or 5432}/{parsed.database or ''}"
