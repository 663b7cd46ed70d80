"""How long a statement waits for the locks of others, in the words of each database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@asynccontextmanager
async def waiting_at_most(connection: AsyncConnection, seconds: float) -> AsyncIterator[None]:
    """Within the block, one transaction or several, no statement waits for a lock longer than this; what the connection
    had before holds again after it. What is not committed in the block is rolled back at its end.

    :raises sqlalchemy.exc.DBAPIError: out of the block, by the statement that would have waited longer; for a database
        whose words are not known here, TimeoutError once the block takes so long as a whole.
    """
    match connection.dialect.name:
        case "postgresql":
            # Until the end of the transaction, which is all that ever waits: the read after it takes no lock.
            await connection.execute(text(f"SET LOCAL lock_timeout = '{math.ceil(seconds * 1000)}ms'"))
            yield
        case "mariadb" | "mysql":
            # The second one is for those who wait for ALTER TABLE: by default a day (MariaDB) or a year (MySQL).
            names = ("innodb_lock_wait_timeout", "lock_wait_timeout")
            before = (await connection.execute(text(f"SELECT {', '.join(f'@@SESSION.{n}' for n in names)}"))).one()
            whole = max(1, math.ceil(seconds))
            async with _restored(connection, _session_variables(names, before)):
                await connection.execute(text(_session_variables(names, (whole, whole))))
                yield
        case "sqlite":
            before = await connection.scalar(text("PRAGMA busy_timeout"))
            async with _restored(connection, f"PRAGMA busy_timeout = {before:d}"):
                await connection.execute(text(f"PRAGMA busy_timeout = {math.ceil(seconds * 1000)}"))
                yield
        case _:
            async with asyncio.timeout(seconds):
                yield


def _session_variables(names: tuple[str, ...], values: tuple[int, ...]) -> str:
    return "SET " + ", ".join(f"SESSION {name} = {value:d}" for name, value in zip(names, values, strict=True))


@asynccontextmanager
async def _restored(connection: AsyncConnection, statement: str) -> AsyncIterator[None]:
    """Say that at the end, or give the connection up: it goes back to a pool, where others count on its settings. What
    ends the block is raised as it is."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            await _restore(connection, statement)
        raise
    await _restore(connection, statement)


async def _restore(connection: AsyncConnection, statement: str) -> None:
    if not connection.invalidated:
        try:
            await connection.rollback()
            await connection.execute(text(statement))
        except BaseException:
            await connection.invalidate()
            raise
