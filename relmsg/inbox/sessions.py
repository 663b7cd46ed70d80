"""Whether an inbox can work with the sessions it was given."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import async_sessionmaker

from relmsg.db.failures import translated
from relmsg.errors import UsageError
from relmsg.inbox.transaction import Opened

POSTGRESQL = "postgresql"


async def require_transactions(sessions: async_sessionmaker[Any], url: URL | None) -> None:
    """Open one of the sessions, and look at the connection that it works on.

    In AUTOCOMMIT the inbox row would be committed before the handler has done anything: after a failure the next try
    would take the message for a duplicate, and it would be lost. ``url`` names the server in errors.

    :raises UsageError: they have no database, one that is not PostgreSQL, or commit each statement by itself.
    :raises DatabaseAway, AccessRefused: it does not answer, or refuses the login.
    """
    with translated(url):
        try:
            async with Opened(sessions) as session:
                connection = await session.connection()
                raw = (await connection.get_raw_connection()).dbapi_connection
                by_itself = bool(getattr(raw, "autocommit", False))
        except UnboundExecutionError as error:
            raise UsageError(
                "Inbox(name, sessions): the sessions have no database; make them by async_sessionmaker(engine)"
            ) from error
    if connection.dialect.name != POSTGRESQL:
        raise UsageError(
            f"Inbox(name, sessions): the sessions work on {connection.dialect.name}; relmsg's tables are in PostgreSQL"
        )
    if by_itself:
        raise UsageError(
            "Inbox(name, sessions): the sessions are in AUTOCOMMIT: what a failing handler wrote would stay, and its "
            'message would be taken for a duplicate; give an engine without isolation_level="AUTOCOMMIT"'
        )
