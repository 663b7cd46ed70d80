"""The relay's statements on the outbox table, each with one sentence on why it is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from relmsg.outbox.driver import Driver
from relmsg.outbox.holds import Hold
from relmsg.outbox.hot import HotKey
from relmsg.outbox.page import MOST_BYTES
from relmsg.outbox.positions import Range
from relmsg.outbox.row import Row
from relmsg.schema import quoted

# bounded: plain SQL may write times that asyncpg cannot read and PostgreSQL cannot subtract, which would fail the whole
# read. Brought nearer, they are still beyond what a row may have, and refused with their row.
BOUNDED = "greatest('1900-01-01 00:00Z'::timestamptz, least('2200-01-01 00:00Z'::timestamptz, {}))"

# What the relay takes of a row.
COLUMNS = f"""o.id, o.slot, o.message_id, o.type, o.source, o.exchange, o.routing_key, o.ordering_key,
                  o.headers::text AS headers, o.content_type, o.content_encoding, o.correlation_id, o.reply_to,
                  o.body, {BOUNDED.format("o.created_at")} AS created_at,
                  {BOUNDED.format("coalesce(o.occurred_at, o.created_at)")} AS sent_time,
                  CASE WHEN o.expires_at IS NOT NULL THEN
                      ceil(extract(epoch FROM {BOUNDED.format("o.expires_at")} - clock_timestamp()) * 1000)::bigint
                  END AS expires_ms"""

# read: the next rows of each slot, in id order, a few from every slot, so that a busy key fills only its own share.
# No lock is taken: the slots are leased, and rows never change while they wait. What is left out is left out inside the
# database, so that a million held rows costs scans and no transfer; ``high`` bounds the scan where that could be many.
# The running sum of sizes bounds memory; the first row always comes through.
#
# Here and below, ``slot = ANY (ARRAY[x])`` is more than ``slot = x``. With that the planner knows the slot to be one,
# takes ``ORDER BY slot, id`` for ``ORDER BY id``, and may have the rows from the primary key, by stepping over those of
# all other slots; where one slot had nearly all rows it did. Comparing pairs, ``(slot, id) <= (x, high)``, would not
# let it either, but an index scan does not end at such a ``high``: it goes on to the end of the slot (0049).
READ = """
SELECT * FROM (
    SELECT m.*, sum(octet_length(m.body)) OVER (ORDER BY m.id) - octet_length(m.body) AS bytes_before
      FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::int[]) AS s(slot, low, high, room)
     CROSS JOIN LATERAL (
           SELECT {columns}
             FROM {outbox_message} AS o
            WHERE o.slot = ANY (ARRAY[s.slot]) AND o.id > s.low AND o.id <= s.high
              AND o.parked_at IS NULL {unless}
            ORDER BY o.slot, o.id
            LIMIT s.room) AS m) AS page
 WHERE bytes_before < $5
 ORDER BY id
"""

# refill: what follows in these keys alone, by the index on (ordering_key, id).
REFILL = """
SELECT * FROM (
    SELECT m.*, sum(octet_length(m.body)) OVER (ORDER BY m.id) - octet_length(m.body) AS bytes_before
      FROM unnest($1::text[], $2::bigint[], $3::int[]) AS s(ordering_key, low, room)
     CROSS JOIN LATERAL (
           SELECT {columns}
             FROM {outbox_message} AS o
            WHERE o.ordering_key = ANY (ARRAY[s.ordering_key]) AND o.id > s.low
              AND o.ordering_key IS NOT NULL AND o.parked_at IS NULL {unless}
            ORDER BY o.ordering_key, o.id
            LIMIT s.room) AS m) AS page
 WHERE bytes_before < $4
 ORDER BY id
"""

# overlooked: rows of these keys that became visible behind the reader's back, by the index on (ordering_key, id).
OVERLOOKED = """
SELECT m.*
  FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS s(ordering_key, low, high)
 CROSS JOIN LATERAL (
       SELECT {columns}
         FROM {outbox_message} AS o
        WHERE o.ordering_key = ANY (ARRAY[s.ordering_key]) AND o.id > s.low AND o.id < s.high
          AND o.ordering_key IS NOT NULL AND o.parked_at IS NULL {unless}
        ORDER BY o.ordering_key, o.id
        LIMIT $4) AS m
 ORDER BY m.id
"""

# unless known: the rows in memory. NOT IN of a subquery is hashed on every version; ``<> ALL`` only since 15.
UNLESS_KNOWN = "AND o.id NOT IN (SELECT unnest({known}::bigint[]))"

# unless hot: the rows of a hot key behind its tail are read by refill. Few of them are before the last of all tails;
# that is asked first, and spares the others, which may be millions, the look at the tail of their own key.
UNLESS_HOT = """
              AND (o.ordering_key IS NULL OR o.ordering_key NOT IN (SELECT unnest({keys}::text[]))
                   OR o.id <= {last} AND o.id <=
                      (SELECT h.tail FROM unnest({keys}::text[], {tails}::bigint[]) AS h(ordering_key, tail)
                        WHERE h.ordering_key = o.ordering_key))"""

# held: whether a row is for a destination that waits. IN of a subquery is hashed: thousands of holds cost as one.
HELD = """({row}.exchange = ANY ({exchanges}::text[])
                   OR ({row}.exchange, {row}.routing_key)
                      IN (SELECT * FROM unnest({pairs}::text[], {routing}::text[])))"""

# unless held: nothing may overtake an earlier row of its key that waits for a held destination, in the table or as the
# probe in memory.
UNLESS_HELD = """
              AND NOT {o_held}
              AND (o.ordering_key IS NULL OR (o.ordering_key NOT IN (SELECT unnest({probes}::text[])) AND NOT EXISTS (
                      SELECT FROM {outbox_message} AS e
                       WHERE e.ordering_key = o.ordering_key AND e.id < o.id AND e.parked_at IS NULL AND {e_held})))"""

# tops and bottoms: the last and the first id of each slot above the one given, for those that have any.
TOPS = """
SELECT s.slot, t.id
  FROM unnest($1::smallint[], $2::bigint[]) AS s(slot, low)
 CROSS JOIN LATERAL (
       SELECT o.id FROM {outbox_message} AS o
        WHERE o.slot = ANY (ARRAY[s.slot]) AND o.id > s.low AND o.parked_at IS NULL
        ORDER BY o.slot DESC, o.id DESC
        LIMIT 1) AS t
"""
BOTTOMS = TOPS.replace(" DESC", "")

# writers: an INSERT locks its table before it draws an id, and the lock is held until the rows are visible.
WRITERS = """
SELECT DISTINCT virtualtransaction AS writer FROM pg_locks
 WHERE relation = to_regclass($1) AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND mode = 'RowExclusiveLock' AND granted
"""

# delete: what this relay saw confirmed is in the broker, whoever owns the slot by now.
DELETE = "DELETE FROM {outbox_message} WHERE id = ANY ($1::bigint[])"

# park: set aside with the reason; the read passes parked rows by.
PARK = """
UPDATE {outbox_message} AS o SET parked_at = clock_timestamp(), attempts = o.attempts + 1, last_error = p.reason
  FROM unnest($1::bigint[], $2::text[]) AS p(id, reason) WHERE o.id = p.id AND o.parked_at IS NULL
"""

# note: why a destination is held, told on its probe row only: one dead row version a probe, not one a message.
NOTE = """
UPDATE {outbox_message} AS o SET last_error = n.reason, attempts = o.attempts + n.attempts
  FROM unnest($1::bigint[], $2::text[], $3::int[]) AS n(id, reason, attempts)
 WHERE o.id = n.id AND o.parked_at IS NULL
"""

# unchanged: which of these rows still wait for the same destination; an operator may redirect, park or drop them.
UNCHANGED = """
SELECT p.id FROM unnest($1::bigint[], $2::text[], $3::text[]) AS p(id, exchange, routing_key)
  JOIN {outbox_message} AS o
    ON o.id = p.id AND o.exchange = p.exchange AND o.routing_key = p.routing_key AND o.parked_at IS NULL
"""

# oldest: age and number of the first row of each slot. Ids are given as rows are written, so the first row of a slot is
# its oldest, give or take the length of a transaction; no other row is looked at.
OLDEST = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min({created_at})), 0)::float8 AS oldest_seconds,
       count(*) AS slots_waiting
  FROM unnest($1::smallint[]) AS s(slot)
 CROSS JOIN LATERAL (
       SELECT o.created_at FROM {outbox_message} AS o
        WHERE o.slot = ANY (ARRAY[s.slot]) AND o.parked_at IS NULL
        ORDER BY o.slot, o.id
        LIMIT 1) AS f
"""

# count: one pass over the index of waiting rows, and one over that of parked ones.
COUNT = """
SELECT count(*) AS backlog, (SELECT count(*) FROM {outbox_message} WHERE parked_at IS NOT NULL) AS parked
  FROM {outbox_message} WHERE parked_at IS NULL AND slot = ANY ($1::smallint[])
"""

HeldLists = tuple[list[str], list[str], list[str], list[str]]


class WaitReason(NamedTuple):
    """Why a row waits, and how many attempts are to be added to its own."""

    id: int
    reason: str
    attempts: int


class OutboxStore:
    """The outbox table, as the relay sees it."""

    def __init__(self, reader: Driver, writer: Driver, measurer: Driver, *, schema: str) -> None:
        self._reader = reader
        self._writer = writer
        self._measurer = measurer
        self._names = {"outbox_message": quoted(schema, "outbox_message")}
        self._tops, self._bottoms = TOPS.format(**self._names), BOTTOMS.format(**self._names)
        self._delete = DELETE.format(**self._names)
        self._park = PARK.format(**self._names)
        self._unchanged = UNCHANGED.format(**self._names)
        self._note = NOTE.format(**self._names)
        self._lists: tuple[Sequence[Hold], HeldLists] | None = None  # of the holds of the last read
        self._oldest = OLDEST.format(created_at=BOUNDED.format("f.created_at"), **self._names)
        self._count = COUNT.format(**self._names)

    async def read(
        self, ranges: Sequence[Range], known: Sequence[int], hot: Iterable[HotKey], holds: Sequence[Hold]
    ) -> Sequence[Any]:
        """The records of these ranges, in id order.

        Left out are the ``known`` ids, what follows the tails of the ``hot`` keys, and what must wait for a hold.
        """
        args: list[object] = [
            [each.slot for each in ranges],
            [each.low for each in ranges],
            [each.high for each in ranges],
            [each.room for each in ranges],
            MOST_BYTES,
        ]
        unless = self._unless(args, known, list(hot), holds)
        return await self._reader.fetch(READ.format(columns=COLUMNS, unless=unless, **self._names), *args)

    async def refill(self, wanted: Sequence[tuple[HotKey, int]], holds: Sequence[Hold]) -> Sequence[Any]:
        """The records behind the tails of these keys, in id order, at most so many of each."""
        args: list[object] = [
            [hot.key for hot, _ in wanted],
            [hot.tail for hot, _ in wanted],
            [room for _, room in wanted],
            MOST_BYTES,
        ]
        unless = self._unless(args, (), (), holds)
        return await self._reader.fetch(REFILL.format(columns=COLUMNS, unless=unless, **self._names), *args)

    async def overlooked(
        self, keys: Sequence[tuple[str, int, int]], known: Sequence[int], holds: Sequence[Hold], *, most: int
    ) -> Sequence[Any]:
        """The records of these keys between two ids each, at most so many of each; without the ``known``."""
        args: list[object] = [
            [key for key, _, _ in keys],
            [low for _, low, _ in keys],
            [high for *_, high in keys],
            most,
        ]
        unless = self._unless(args, known, (), holds)
        return await self._reader.fetch(OVERLOOKED.format(columns=COLUMNS, unless=unless, **self._names), *args)

    def _unless(self, args: list[object], known: Sequence[int], hot: Sequence[HotKey], holds: Sequence[Hold]) -> str:
        """The conditions of a read; their values go into ``args``."""

        def arg(value: object) -> str:
            args.append(value)
            return f"${len(args)}"

        text = ""
        if known:
            text += UNLESS_KNOWN.format(known=arg(known))
        if hot:
            tails = [each.tail for each in hot]
            text += UNLESS_HOT.format(keys=arg([each.key for each in hot]), tails=arg(tails), last=arg(max(tails)))
        if holds:
            if self._lists is None or self._lists[0] is not holds:
                self._lists = holds, _lists(holds)
            exchanges, pairs, routing, probes = self._lists[1]
            held = {"exchanges": arg(exchanges), "pairs": arg(pairs), "routing": arg(routing)}
            text += UNLESS_HELD.format(
                o_held=HELD.format(row="o", **held),
                e_held=HELD.format(row="e", **held),
                probes=arg(probes),
                **self._names,
            )
        return text

    async def now(self) -> datetime:
        """The database's clock."""
        moment: datetime = (await self._reader.fetch("SELECT clock_timestamp() AS now"))[0]["now"]
        return moment

    async def tops(self, known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where the ids of these slots end, for those that have rows above the ids given."""
        found = await self._reader.fetch(self._tops, [slot for slot, _ in known], [top for _, top in known])
        return [(record["slot"], record["id"]) for record in found]

    async def writers(self) -> list[str]:
        """The open transactions that have written to the outbox, or are about to."""
        return [record["writer"] for record in await self._reader.fetch(WRITERS, self._names["outbox_message"])]

    async def bottoms(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Where the ids of these slots begin, for those that have rows."""
        found = await self._reader.fetch(self._bottoms, slots, [0] * len(slots))
        return [(record["slot"], record["id"]) for record in found]

    async def delete(self, ids: Iterable[int]) -> None:
        """Remove rows that were confirmed; in id order, so that two writers cannot deadlock."""
        await self._writer.fetch(self._delete, sorted(ids))

    async def park(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Set rows aside, each with its reason."""
        reasons = sorted(reasons)  # in id order, as the deletes
        texts = [_storable(reason) for _, reason in reasons]
        await self._writer.fetch(self._park, [row_id for row_id, _ in reasons], texts)

    async def note(self, reasons: Sequence[WaitReason]) -> None:
        """Write on waiting rows why they wait."""
        reasons = sorted(reasons)
        ids, texts = [each.id for each in reasons], [_storable(each.reason) for each in reasons]
        await self._writer.fetch(self._note, ids, texts, [each.attempts for each in reasons])

    async def unchanged(self, rows: Sequence[Row]) -> set[int]:
        """The ids of those rows that still wait in the table, for the same destination."""
        args = (
            [row.id for row in rows],
            [row.publish.exchange for row in rows],
            [row.publish.routing_key for row in rows],
        )
        return {record["id"] for record in await self._writer.fetch(self._unchanged, *args)}

    async def oldest(self, slots: Iterable[int]) -> float | None:
        """How many seconds the oldest row of these slots waits; None when none does."""
        record = (await self._measurer.fetch(self._oldest, list(slots)))[0]
        return max(0.0, record["oldest_seconds"]) if record["slots_waiting"] else None

    async def count(self, slots: Iterable[int]) -> tuple[int, int]:
        """How many rows of these slots wait, and how many are parked in all; takes seconds where there are millions."""
        record = (await self._measurer.fetch(self._count, list(slots)))[0]
        return record["backlog"], record["parked"]


def _lists(holds: Sequence[Hold]) -> HeldLists:
    """What a read is told of holds: whole exchanges; exchanges and routing keys in pairs; ordering keys of probes."""
    pairs = [(exchange, key) for exchange, key in (hold.destination for hold in holds) if key is not None]
    return (
        [hold.destination.exchange for hold in holds if hold.destination.routing_key is None],
        [exchange for exchange, _ in pairs],
        [key for _, key in pairs],
        [hold.row.ordering_key for hold in holds if hold.row.ordering_key is not None],
    )


def _storable(reason: str) -> str:
    """A text as PostgreSQL takes it: a broker's or a row's own words may hold a NUL or a lone surrogate."""
    return reason.replace("\0", "\\0").encode(errors="backslashreplace").decode()
