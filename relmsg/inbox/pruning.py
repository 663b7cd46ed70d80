"""Every statement that makes an inbox forget what it handled long ago, and that tells how much it remembers.

A consumer's *dedup window* is how long it remembers. It stands in ``inbox_window``, with the moment up to which the
inbox has forgotten: a message handled before that moment would be handled again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ARRAY, Interval, Text, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from relmsg.db.divided import divided
from relmsg.db.failures import brief, is_refusal
from relmsg.errors import DatabaseAway
from relmsg.schema import DEFAULT_SCHEMA, quoted

DEFAULT_WINDOW: Final = timedelta(days=30)
BATCH = 1000  # rows a transaction; some milliseconds
MOST_IN_VAIN = 3  # batches of which nothing could be forgotten
COUNTED = 100_000  # more rows than these are estimated

WINDOW = "SELECT keeps, pruned_before, pruned_at, now() - keeps AS before FROM {window} WHERE consumer = :consumer"
WINDOWS = "SELECT consumer, keeps, pruned_before, pruned_at, now() - keeps AS before FROM {window}"
SET_WINDOW = """
INSERT INTO {window} AS w (consumer, keeps) VALUES (:consumer, :keeps)
ON CONFLICT (consumer) DO UPDATE SET keeps = excluded.keeps WHERE w.keeps IS DISTINCT FROM excluded.keeps
"""
# One transaction at a time prunes a consumer's rows, and it has no choice of plan: statistics of a table that grew or
# shrank since would have it read all of it.
BEGIN = """
SELECT pg_try_advisory_xact_lock(hashtextextended('relmsg inbox prune ' || :schema || ' ' || :consumer, 0)) AS mine,
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('synchronous_commit', 'off', true)
"""
# The oldest first, from where the batch before ended: what that one deleted need not be stepped over again. A row is
# never updated, so the place where it was found is where it is.
OLDEST = """
        SELECT ctid FROM {inbox}
        WHERE consumer = :consumer AND handled_at >= coalesce(:since, '-infinity') AND handled_at < :before
        ORDER BY consumer, handled_at LIMIT {batch}
"""
FORGET = f"""
WITH gone AS (
    DELETE FROM {{inbox}} WHERE ctid = ANY(ARRAY({OLDEST})) RETURNING handled_at
)
SELECT count(*) AS rows, max(handled_at) AS last FROM gone
"""  # noqa: S608
# The same batch where the server has refused it, row by row. A place can have been given to another row meanwhile.
BATCH_OF = f"SELECT ctid::text AS place, handled_at FROM {{inbox}} WHERE ctid = ANY(ARRAY({OLDEST}))"  # noqa: S608
FORGET_THESE = """
DELETE FROM {inbox} WHERE ctid = ANY(CAST(:places AS tid[])) AND consumer = :consumer AND handled_at < :before
"""
# A constraint that would be looked at when the transaction commits could not be told to belong to a row.
AT_ONCE = "SET CONSTRAINTS ALL IMMEDIATE"
# Starts of messages that never ended anywhere. The table is small: every row has cost a worker its life.
FORGET_STARTS = """
DELETE FROM {attempt} WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {attempt} WHERE consumer = :consumer AND first_at < :before LIMIT {batch}
))
"""
PRUNED = """
INSERT INTO {window} AS w (consumer, keeps, pruned_before, pruned_at) VALUES (:consumer, {default}, :before, now())
ON CONFLICT (consumer) DO UPDATE
SET pruned_before = greatest(w.pruned_before, excluded.pruned_before), pruned_at = excluded.pruned_at
"""
# PostgreSQL has no scan that skips equal values; this steps from one consumer to the next.
CONSUMERS = """
WITH RECURSIVE each AS (
    (SELECT consumer FROM {inbox} ORDER BY consumer LIMIT 1)
    UNION ALL
    SELECT (SELECT i.consumer FROM {inbox} i WHERE i.consumer > each.consumer ORDER BY i.consumer LIMIT 1)
    FROM each WHERE each.consumer IS NOT NULL
)
SELECT consumer FROM each WHERE consumer IS NOT NULL UNION SELECT consumer FROM {window} ORDER BY consumer
"""
AGES = "SELECT min(handled_at) AS oldest, max(handled_at) AS newest FROM {inbox} WHERE consumer = :consumer"
COUNT = "SELECT count(*) FROM (SELECT FROM {inbox} WHERE consumer = :consumer LIMIT {counted} + 1) AS counted"
ESTIMATE = "EXPLAIN (FORMAT JSON) SELECT FROM {inbox} WHERE consumer = :consumer"
DUE = "SELECT count(*) FROM {inbox} WHERE consumer = :consumer AND handled_at < :before"
BEFORE = "SELECT now() - CAST(:age AS interval)"
INDEXED = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
               WHERE i.indrelid = to_regclass(:inbox) AND x.relname = 'inbox_message_handled_at' AND i.indisvalid)
"""

_TYPES: Final[dict[str, Any]] = {
    "keeps": Interval(),
    "age": Interval(),
    "since": TIMESTAMP(timezone=True),
    "before": TIMESTAMP(timezone=True),
    "places": ARRAY(Text),
}


@dataclass(frozen=True, slots=True)
class Window:
    """How long a consumer remembers (None: for ever), and what it has forgotten."""

    keeps: timedelta | None
    pruned_before: datetime | None
    pruned_at: datetime | None
    before: datetime | None  # what was handled earlier may be forgotten now

    @property
    def forgets_before(self) -> datetime | None:
        """What was handled before this moment is or may be forgotten; None: nothing."""
        return max((each for each in (self.before, self.pruned_before) if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one batch did. ``last`` is None after the last one: nothing older than the window is left, but what the
    database has ``refused`` to forget, for this ``error``; some of them are met ``again`` by the next batch."""

    rows: int
    last: datetime | None
    refused: int = 0
    again: int = 0
    error: DatabaseAway | None = None


class Pruning:
    """The statements, in one schema. No method opens or ends a transaction."""

    def __init__(self, schema: str = DEFAULT_SCHEMA) -> None:
        self._schema = schema
        self._inbox = quoted(schema, "inbox_message")
        self._names = {
            "inbox": self._inbox.replace(":", "\\:"),
            "attempt": quoted(schema, "inbox_attempt").replace(":", "\\:"),
            "window": quoted(schema, "inbox_window").replace(":", "\\:"),
            "batch": BATCH,
            "counted": COUNTED,
            "default": f"interval '{DEFAULT_WINDOW.days} days'",
        }

    async def window(self, connection: AsyncConnection, consumer: str) -> Window | None:
        """The consumer's window; None where none was ever stored."""
        row = (await connection.execute(self._sql(WINDOW), {"consumer": consumer})).one_or_none()
        return None if row is None else Window(*row)

    async def windows(self, connection: AsyncConnection) -> dict[str, Window]:
        """Every stored window by its consumer's name."""
        rows = await connection.execute(self._sql(WINDOWS))
        return {row.consumer: Window(row.keeps, row.pruned_before, row.pruned_at, row.before) for row in rows}

    async def set_window(self, connection: AsyncConnection, consumer: str, keeps: timedelta | None) -> None:
        """Store how long a consumer remembers; None: for ever."""
        await connection.execute(self._sql(SET_WINDOW), {"consumer": consumer, "keeps": keeps})

    async def before(self, connection: AsyncConnection, age: timedelta) -> datetime:
        """The moment that long ago, by the database's clock."""
        found: datetime = (await connection.execute(self._sql(BEFORE), {"age": age})).scalar_one()
        return found

    async def forget(
        self, connection: AsyncConnection, consumer: str, before: datetime, since: datetime | None
    ) -> Pruned | None:
        """Forget at most 1000 messages handled before a moment, the oldest first; None if another process is at it.
        ``since`` is what the batch before ended with. To be committed at once: the right to prune ends with it.
        """
        asked = {"consumer": consumer, "before": before}
        begun = await connection.execute(self._sql(BEGIN), {"consumer": consumer, "schema": self._schema})
        if not begun.one().mine:
            return None
        await connection.execute(text(AT_ONCE))
        gone = await self._forget_batch(connection, asked | {"since": since})
        is_last = gone.rows + gone.refused < BATCH
        if gone.refused and not is_last:
            if not gone.rows and since is not None and gone.last == since:
                gone = replace(gone, last=since + timedelta(microseconds=1))  # they would be met again, for ever
            else:
                gone = replace(gone, refused=gone.refused - gone.again)
        reached = before if gone.last is None or is_last else gone.last + timedelta(microseconds=1)
        if is_last:
            while (await connection.execute(self._sql(FORGET_STARTS), asked)).rowcount == BATCH:
                pass
        await connection.execute(self._sql(PRUNED), {"consumer": consumer, "before": reached})
        return replace(gone, last=None) if is_last else gone

    async def _forget_batch(self, connection: AsyncConnection, asked: dict[str, Any]) -> Pruned:
        """Forget one batch, and where a trigger or constraint of the user's refuses some of it, the rest of it."""
        try:
            async with connection.begin_nested():
                gone = (await connection.execute(self._sql(FORGET), asked)).one()
            return Pruned(gone.rows, gone.last)
        except DBAPIError as error:
            if not is_refusal(error):
                raise
        found = (await connection.execute(self._sql(BATCH_OF), asked)).all()
        places = [each.place for each in found]
        random.shuffle(places)  # the refused often lie together, and must not be taken for all
        forgotten: list[str] = []

        async def forget(part: Sequence[str]) -> None:
            try:
                async with connection.begin_nested():
                    await connection.execute(self._sql(FORGET_THESE), asked | {"places": list(part)})
            except DBAPIError as error:
                raise DatabaseAway(brief(error)) from error

        refused = await divided(places, forget, forgotten.extend)
        last = max((each.handled_at for each in found), default=None)
        again = sum(each.handled_at == last for each in found if each.place in refused)
        return Pruned(len(forgotten), last, len(refused), again, next(iter(refused.values()), None))

    async def is_indexed(self, connection: AsyncConnection) -> bool:
        """Whether the index is there by which the oldest messages are found; without it nothing may be pruned."""
        return bool((await connection.execute(text(INDEXED), {"inbox": self._inbox})).scalar())

    async def due(self, connection: AsyncConnection, consumer: str, before: datetime) -> int:
        """How many messages of the consumer were handled before a moment."""
        found = await connection.execute(self._sql(DUE), {"consumer": consumer, "before": before})
        return int(found.scalar_one())

    async def consumers(self, connection: AsyncConnection) -> list[str]:
        """The names of all consumers that remember anything or have a window."""
        return [str(name) for name in (await connection.execute(self._sql(CONSUMERS))).scalars()]

    async def ages(self, connection: AsyncConnection, consumer: str) -> tuple[datetime | None, datetime | None]:
        """When the oldest and the newest message that it remembers were handled."""
        row = (await connection.execute(self._sql(AGES), {"consumer": consumer})).one()
        return row.oldest, row.newest

    async def count(self, connection: AsyncConnection, consumer: str) -> tuple[int, bool]:
        """How many messages it remembers, and whether that is exact: above 100,000 PostgreSQL's statistics tell."""
        asked = {"consumer": consumer}
        rows = int((await connection.execute(self._sql(COUNT), asked)).scalar_one())
        if rows <= COUNTED:
            return rows, True
        plan = (await connection.execute(self._sql(ESTIMATE), asked)).scalar_one()
        return max(rows, int(plan[0]["Plan"]["Plan Rows"])), False

    def _sql(self, statement: str) -> TextClause:
        made = text(statement.format(**self._names))
        kinds = {name: _TYPES.get(name, Text()) for name in made.compile().params}
        return made.bindparams(*(bindparam(name, type_=kind) for name, kind in kinds.items()))


async def forget_all(
    forget: Callable[[datetime | None], Awaitable[Pruned | None]],
    pause: Callable[[int], Awaitable[None]],
) -> int | None:
    """Forget batch after batch until nothing older is left; how many, or None if another process is at it.

    :raises DatabaseAway: of three batches in a row nothing could be forgotten, because the database refused it.
    """
    total, in_vain, since = 0, 0, None
    while True:
        pruned = await forget(since)
        if pruned is None:
            return None
        total += pruned.rows
        in_vain = 0 if pruned.rows or pruned.error is None else in_vain + 1
        if in_vain == MOST_IN_VAIN and pruned.error is not None:
            raise pruned.error
        if pruned.last is None:
            return total
        since = pruned.last
        await pause(total)
