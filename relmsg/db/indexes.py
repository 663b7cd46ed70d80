"""Builds indexes on large tables without stopping those who write to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from relmsg.db.failures import is_contention, sqlstate
from relmsg.db.revisions import ConcurrentIndex
from relmsg.errors import DatabaseAway
from relmsg.schema import quoted

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]

SMALL_BYTES = 1024 * 1024  # built in milliseconds: nobody notices the lock
ATTEMPTS = 20
LOOK_SECONDS = 0.5
ALREADY_THERE = "42P07"  # another process has begun it between our look and our statement

# Whether the index is there and complete, and how large its table is.
STATE = """
SELECT t.oid AS table, pg_catalog.pg_relation_size(t.oid) AS bytes, i.indisvalid AS valid
FROM pg_catalog.pg_class t
LEFT JOIN (pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid AND x.relname = :index)
    ON i.indrelid = t.oid
WHERE t.oid = to_regclass(:table)
"""
# Who builds an index on the table, and how far that is. The view hides numbers of other users, never the process id.
BUILDING = """
SELECT coalesce(greatest(p.blocks_done::float / nullif(p.blocks_total, 0),
                         p.tuples_done::float / nullif(p.tuples_total, 0)), 0) AS share
FROM pg_catalog.pg_stat_progress_create_index p
JOIN pg_catalog.pg_locks l ON l.pid = p.pid AND l.locktype = 'relation' AND l.relation = :table AND l.granted
"""
# Time limits of the role or the database, made for statements of milliseconds, would end a build half way.
LIMITS = ("lock_timeout", "statement_timeout")


@dataclass(frozen=True, slots=True)
class State:
    """What the catalogue says of an index: it is valid, it is invalid, or (None) it is not there."""

    table: int
    bytes: int
    valid: bool | None


def no_progress(_what: str, _share: float) -> None:
    """Tells nobody."""


def build_small(connection: Connection, schema: str, indexes: Iterable[ConcurrentIndex]) -> list[str]:
    """Build in the caller's transaction what is missing on small tables; the names of those that are left to build."""
    left = []
    for index in indexes:
        state = _state(connection, schema, index)
        if state is None or state.valid:
            continue
        if state.valid is None and state.bytes <= SMALL_BYTES:
            connection.execute(text(_escaped(index.statement(schema, concurrently=False))))
        else:
            left.append(index.name)
    return left


async def complete(
    engine: AsyncEngine, schema: str, indexes: Iterable[ConcurrentIndex], progress: Progress = no_progress
) -> None:
    """Build what is missing, one after the other, while others write. What another process builds is awaited; what an
    interrupted build has left is dropped first.

    :raises DatabaseAway: an index could not be completed for as often as it was tried.
    """
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for index in indexes:
            await _complete(connection, engine, schema, index, progress)


async def _complete(
    connection: AsyncConnection, engine: AsyncEngine, schema: str, index: ConcurrentIndex, progress: Progress
) -> None:
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        state = await connection.run_sync(_state, schema, index)
        while state and not state.valid and (share := await _share(connection, state)) is not None:
            progress(index.name, share)
            await asyncio.sleep(LOOK_SECONDS)
            state = await connection.run_sync(_state, schema, index)
        if state is None or state.valid:  # no table: `relmsg db check` tells
            return
        try:
            if state.valid is False:
                await _unlimited(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {quoted(schema, index.name)}")
            await _watched(connection, engine, schema, index, progress)
        except Exception as error:
            if not is_contention(error) and sqlstate(error) != ALREADY_THERE:
                raise
            failure = error
            log.info("index %s: the build met another one, it is tried again", index.name)
            await asyncio.sleep(LOOK_SECONDS)
    raise DatabaseAway(
        f"index {index.name} in schema {schema} could not be completed: other sessions were in the way; try again"
    ) from failure


async def _watched(
    connection: AsyncConnection, engine: AsyncEngine, schema: str, index: ConcurrentIndex, progress: Progress
) -> None:
    building = asyncio.create_task(_unlimited(connection, index.statement(schema, concurrently=True)))
    try:
        async with engine.connect() as looking:
            looking = await looking.execution_options(isolation_level="AUTOCOMMIT")
            state = await looking.run_sync(_state, schema, index)
            while not (await asyncio.wait({building}, timeout=LOOK_SECONDS))[0]:
                progress(index.name, (await _share(looking, state) if state else None) or 0.0)
    finally:
        if not building.done():
            building.cancel()
        await asyncio.wait({building})
    await building
    progress(index.name, 1.0)


async def _unlimited(connection: AsyncConnection, statement: str) -> None:
    limited = [name for name in LIMITS if (await connection.execute(text(f"SHOW {name}"))).scalar() != "0"]
    for name in limited:
        await connection.execute(text(f"SET {name} = 0"))
    try:
        await connection.execute(text(_escaped(statement)))
    finally:
        if not connection.invalidated:
            for name in limited:
                await connection.execute(text(f"RESET {name}"))


async def _share(connection: AsyncConnection, state: State) -> float | None:
    return (await connection.execute(text(BUILDING), {"table": state.table})).scalar()


def _state(connection: Connection, schema: str, index: ConcurrentIndex) -> State | None:
    asked = {"index": index.name, "table": quoted(schema, index.table)}
    row = connection.execute(text(STATE), asked).one_or_none()
    return None if row is None else State(row.table, row.bytes, row.valid)


def _escaped(statement: str) -> str:
    return statement.replace(":", "\\:")
