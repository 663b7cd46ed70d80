"""Bringing relmsg's tables into a database, and telling whether they are right.

relmsg's migrations are a tree of their own: their version tables (``relmsg_version`` and ``relmsg_revision``) stand in
relmsg's schema, so that an application's own Alembic tree keeps one head and never hears of ours (see
migrations/README.md). Alembic is loaded only where something is applied.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from relmsg import catalogue
from relmsg.arguments import shown
from relmsg.database import create_engine
from relmsg.db import indexes
from relmsg.db.failures import is_contention, translated
from relmsg.db.revisions import Revision, concurrent_indexes, location, revisions
from relmsg.db.search_path import local_search_path
from relmsg.db.versions import OLDEST_TABLE, REVISION_TABLE, VERSION_TABLES, Recorded, present, recorded
from relmsg.errors import DatabaseAway, SchemaError, UsageError
from relmsg.retry import full_jitter
from relmsg.schema import tables
from relmsg.settings import schema_in_force

__all__ = ["check", "include_object", "location", "require_current", "sql", "upgrade", "upgrade_connection"]

T = TypeVar("T")

log = logging.getLogger(__name__)

# A DDL statement that waits for a lock makes every producer wait behind it: give up after half a second (in env.py),
# let them pass, try again (reliability.md R3).
ATTEMPTS = 20

# Alembic keeps the migration it runs in module globals, so one event loop runs one at a time.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def upgrade(
    url: str | URL, schema: str | None = None, progress: indexes.Progress = indexes.no_progress
) -> list[str]:
    """Bring the schema to the newest version, creating it if it is missing; the revisions applied, oldest first.

    The tables change in one transaction: it is there or it is not. A lock is awaited for half a second at most, then
    everything is rolled back and tried again, twenty times in all. Indexes on tables that hold more than a little are
    built afterwards, concurrently, and writers go on meanwhile; an upgrade that ends before they are complete is
    continued by the next one. Any number of processes may call this at the same time; one works, the others wait and
    find nothing left to do. Where newer code has changed the tables and this code may still work on them, nothing is
    done. The schema is that of ``RELMSG_SCHEMA`` unless given.

    :param progress: called with what is being built, and how much of it is done, between 0 and 1.
    :raises SchemaError: if the tables have left this code behind, or hold relmsg's tables without their version.
    :raises DatabaseAway: if PostgreSQL does not answer, or a table stayed locked by another session.
    :raises AccessRefused: wrong user, password or database, or no permission to create.
    """
    schema = schema_in_force(schema)
    engine = create_engine(url, poolclass=NullPool)
    try:
        async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            with translated(url):
                applied = await _apply(engine, schema)
                await indexes.complete(engine, schema, concurrent_indexes(location()), progress)
            return applied
    finally:
        await engine.dispose()


def upgrade_connection(connection: Connection, schema: str | None = None) -> list[str]:
    """``upgrade`` inside the caller's transaction, which is neither committed nor retried; any driver will do.

    Made for a revision in an application's own Alembic tree: ``migrate.upgrade_connection(op.get_bind())``. Inside the
    transaction ``lock_timeout`` is half a second from here on. An index on a table that holds more than a little
    cannot be built in a transaction without stopping writers: it is left to ``relmsg db upgrade``, and a warning says
    so.

    :raises UsageError: without a connection, as under ``alembic upgrade --sql``.
    """
    if connection is None:
        raise UsageError(
            "relmsg's tables depend on what the database holds, and `alembic upgrade --sql` asks none: write them by "
            "`relmsg db sql` (or `relmsg db sql --since REVISION`) and run that beside yours"
        )
    with local_search_path(connection):
        return _upgrade(connection, schema_in_force(schema))


def _upgrade(connection: Connection, schema: str) -> list[str]:
    connection.execute(text("SET LOCAL lock_timeout = '60s'"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('relmsg db upgrade ' || CAST(:schema AS text), 0))"),
        {"schema": schema},
    )
    connection.execute(text("SET LOCAL lock_timeout = '500ms'"))
    found, known = recorded(connection, schema), _known()
    if found.oldest is None and present(connection, schema, _names(schema)):
        raise SchemaError(
            f"schema {schema} holds relmsg's tables but not their version ({OLDEST_TABLE}): they were not made by "
            "`relmsg db upgrade`; give relmsg another schema, or drop these tables if they are empty"
        )
    if found.is_newer(known):
        raise SchemaError(_newer(schema, found))
    if found.is_ahead(known):
        return []
    applied: list[str] = []
    if found != Recorded(known[-1].name, known[-1].oldest_compatible):
        from relmsg.db import alembic_run

        applied = alembic_run.run(connection, schema, location(), found)
    for index in indexes.build_small(connection, schema, concurrent_indexes(location())):
        log.warning("index %s is still to be built, by `relmsg db upgrade`: its table is too large to stop it", index)
    return applied


def sql(schema: str | None = None, since: str | None = None) -> str:
    """What ``upgrade`` does to an empty database, as plain SQL in one transaction, version tables included.

    :param since: for a database at that revision instead; indexes then stand behind the transaction, built
        concurrently.
    :raises UsageError: there is no such revision.
    """
    from relmsg.db import alembic_run

    schema = schema_in_force(schema)
    names = [revision.name for revision in _known()]
    if since is not None and since not in names:
        raise UsageError(f"there is no revision {shown(since)}: this relmsg knows {', '.join(names)}")
    written = io.StringIO()
    alembic_run.write(schema, location(), since, written)
    return written.getvalue()


async def _apply(engine: AsyncEngine, schema: str) -> list[str]:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(upgrade_connection, schema)
        except Exception as error:
            if not is_contention(error):
                raise
            if attempt == ATTEMPTS:
                raise DatabaseAway(
                    f"schema {schema} could not be upgraded: another session holds a lock on it for long; find it in "
                    "pg_locks, end it, and try again"
                ) from error
        await asyncio.sleep(full_jitter(attempt, base=0.2, cap=2.0))
    raise AssertionError("unreachable")


async def check(bind: AsyncEngine | AsyncConnection, schema: str | None = None) -> list[str]:
    """One line for each difference between the database and ``relmsg.schema``; none if all is as it should be.

    Compared: tables, columns, types, nullability, defaults, generated expressions, identities, constraints, indexes
    with their columns and predicates, storage options, the rows of outbox_slot, the version. Nothing is changed. On a
    connection in a transaction it works within that transaction, behind a savepoint.

    :raises DatabaseAway, AccessRefused: if the comparison could not be made.
    """
    schema = schema_in_force(schema)
    return await _on(bind, _differences, schema)


async def require_current(bind: AsyncEngine | AsyncConnection, schema: str | None = None) -> None:
    """Return if this code may work on the tables of the schema. Every process calls it at its start.

    It may if they are at its own version, or at a later one that records this version, or an older one, as the oldest
    that may work on it: so a process of the last release starts and works beside those of the next.

    :raises SchemaError: if relmsg's tables are missing, older, or have left this code behind; its text says what to do.
    :raises DatabaseAway, AccessRefused: if it could not be found out.
    """
    schema = schema_in_force(schema)
    found, known = await _on(bind, recorded, schema), _known()
    if found.oldest is None:
        raise SchemaError(f"relmsg's tables are missing in schema {schema}: run `relmsg db upgrade`")
    if found.is_newer(known):
        raise SchemaError(_newer(schema, found))
    if found.is_ahead(known):
        log.info("schema %s has version %s, and works with this relmsg too", schema, found.revision)
    elif found.revision != known[-1].name:
        raise SchemaError(
            f"schema {schema} has version {found.revision}, this relmsg needs {known[-1].name}: run `relmsg db upgrade`"
        )
    if missing := await _on(bind, _missing, schema):
        # Otherwise found out in the middle of the work, where it looks like an outage that will pass.
        raise SchemaError(
            f"schema {schema} has version {found.revision}, but {', '.join(missing)} is missing: somebody dropped it; "
            "bring it back as `relmsg db sql` defines it, `relmsg db check` tells when all is well"
        )


def include_object(
    item: Any,
    name: str | None,
    type_: str,
    reflected: bool,
    compare_to: Any,
    *,
    schema: str | None = None,
) -> bool:
    """For ``context.configure(include_object=…)`` of an application's own Alembic: leaves out relmsg's tables.

    Left out is what stands in that schema and bears the name of one of relmsg's tables. Alembic does not tell the
    schema of what stands in the connection's default one: there a table is left out by its name, unless the
    application's metadata has a table of that name itself. For another schema's name:
    ``functools.partial(include_object, schema="messages")``.
    """
    schema = schema_in_force(schema)
    ours = {table.name for table in tables(schema).metadata.tables.values()} | set(VERSION_TABLES)
    if type_ != "table":  # Alembic asks for indexes and constraints only of tables it has let in
        return True
    if item.schema is None:
        return not (name in ours and reflected and compare_to is None)
    return not (name in ours and item.schema == schema)


def _known() -> tuple[Revision, ...]:
    return revisions(location())


async def _on(bind: AsyncEngine | AsyncConnection, look: Callable[[Connection, str], T], schema: str) -> T:
    """Read in the connection's transaction, or in one of its own that is rolled back."""

    def read(connection: Connection, schema: str) -> T:
        with local_search_path(connection):
            return look(connection, schema)

    with translated(bind.engine.url):
        if isinstance(bind, AsyncEngine):
            async with bind.connect() as connection:
                return await connection.run_sync(read, schema)
        if bind.in_transaction():
            return await bind.run_sync(read, schema)
        try:
            return await bind.run_sync(read, schema)
        finally:
            await bind.rollback()


def _differences(connection: Connection, schema: str) -> list[str]:
    lines = catalogue.differences(connection, schema, VERSION_TABLES)
    if lines == [f"schema {schema} is missing"]:
        return lines
    found, known = recorded(connection, schema), _known()
    if found.is_ahead(known):  # what newer code has added is none of ours
        return [line for line in lines if not line.endswith(" is extra")]
    newest = known[-1]
    for table, value, expected in (
        (OLDEST_TABLE, found.oldest, newest.oldest_compatible),
        (REVISION_TABLE, found.revision, newest.name),
    ):
        if value != expected:
            lines.append(f"table {table}: version is {value or 'none'}, expected {expected}")
    return lines


def _names(schema: str) -> list[str]:
    return [table.name for table in tables(schema).metadata.tables.values()]


def _missing(connection: Connection, schema: str) -> list[str]:
    return sorted(set(_names(schema)) - present(connection, schema, _names(schema)))


def _newer(schema: str, found: Recorded) -> str:
    return (
        f"schema {schema} has version {found.revision}, on which nothing older than version {found.oldest} may work: "
        "it is newer than this code, so install the relmsg that made it, or a later one"
    )
