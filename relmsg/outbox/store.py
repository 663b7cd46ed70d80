"""The relay's statements on the outbox table, each with one sentence on why it is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from relmsg.outbox.driver import Driver
from relmsg.outbox.holds import Hold
from relmsg.outbox.positions import Range
from relmsg.outbox.row import Row
from relmsg.schema import quoted

# read: the next rows of each slot, in id order, a few from every slot, so that a busy key fills only its own share.
# No lock is taken: the slots are leased, and rows never change while they wait. Ids in memory are left out; rows for
# held destinations are passed by inside the database, so that a million of them costs a scan and no transfer.
# The running sum of sizes bounds memory; the first row always comes through.
READ = """
SELECT * FROM (
    SELECT m.*, sum(octet_length(m.body)) OVER (ORDER BY m.id) - octet_length(m.body) AS bytes_before
      FROM unnest($1::smallint[], $2::bigint[], $3::int[]) AS s(slot, low, room)
     CROSS JOIN LATERAL (
           SELECT o.id, o.slot, o.message_id, o.type, o.source, o.exchange, o.routing_key, o.ordering_key,
                  o.headers::text AS headers, o.content_type, o.content_encoding, o.correlation_id, o.reply_to,
                  o.body, coalesce(o.occurred_at, o.created_at) AS sent_time,
                  ceil(extract(epoch FROM o.expires_at - clock_timestamp()) * 1000)::bigint AS expires_ms
             FROM {outbox_message} AS o
            WHERE o.slot = s.slot AND o.id > s.low AND o.parked_at IS NULL
              AND o.id <> ALL ($4::bigint[]) {careful}
            ORDER BY o.id
            LIMIT s.room) AS m) AS page
 WHERE bytes_before < $5
 ORDER BY id
"""

# held: whether a row is for a destination that waits.
HELD = """
({row}.exchange = ANY ($6::text[])
 OR EXISTS (SELECT FROM unnest($7::text[], $8::text[]) AS h(exchange, routing_key)
             WHERE h.exchange = {row}.exchange AND h.routing_key = {row}.routing_key))
"""

# careful: what a read adds while destinations are held. Nothing may overtake an earlier row of its key that waits for
# one of them, in the table or as the probe in memory.
CAREFUL = """
              AND NOT {o_held}
              AND (o.ordering_key IS NULL OR (o.ordering_key <> ALL ($9::text[]) AND NOT EXISTS (
                      SELECT FROM {outbox_message} AS e
                       WHERE e.ordering_key = o.ordering_key AND e.id < o.id AND e.parked_at IS NULL AND {e_held})))
"""

# delete: what this relay saw confirmed is in the broker, whoever owns the slot by now.
DELETE = "DELETE FROM {outbox_message} WHERE id = ANY ($1::bigint[])"

# park: set aside with the reason; the read passes parked rows by.
PARK = """
UPDATE {outbox_message} AS o SET parked_at = clock_timestamp(), attempts = o.attempts + 1, last_error = p.reason
  FROM unnest($1::bigint[], $2::text[]) AS p(id, reason) WHERE o.id = p.id AND o.parked_at IS NULL
"""

# note: why a destination is held, told on its probe row only: one dead row version a probe, not one a message.
NOTE = "UPDATE {outbox_message} SET last_error = $2, attempts = attempts + $3::int WHERE id = $1"

# measure: what waits in these slots. One pass over the index of waiting rows.
MEASURE = """
SELECT count(*) AS backlog,
       coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS oldest_seconds,
       (SELECT count(*) FROM {outbox_message} WHERE parked_at IS NOT NULL) AS parked
  FROM {outbox_message} WHERE parked_at IS NULL AND slot = ANY ($1::smallint[])
"""

MOST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Measure:
    """What waits."""

    backlog: int
    oldest_seconds: float
    parked: int


class OutboxStore:
    """The outbox table, as the relay sees it."""

    def __init__(self, reader: Driver, writer: Driver, *, schema: str) -> None:
        self._reader = reader
        self._writer = writer
        names = {"outbox_message": quoted(schema, "outbox_message")}
        self._read = READ.format(careful="", **names)
        careful = CAREFUL.format(o_held=HELD.format(row="o"), e_held=HELD.format(row="e"), **names)
        self._read_carefully = READ.format(careful=careful, **names)
        self._delete = DELETE.format(**names)
        self._park = PARK.format(**names)
        self._note = NOTE.format(**names)
        self._measure = MEASURE.format(**names)

    async def read(self, ranges: Sequence[Range], known: Sequence[int], holds: Sequence[Hold]) -> Sequence[Any]:
        """The records of these ranges, without the ``known`` ids and those that must wait for a hold, in id order."""
        args: list[object] = [
            [each.slot for each in ranges],
            [each.low for each in ranges],
            [each.room for each in ranges],
            known,
            MOST_BYTES,
        ]
        if not holds:
            return await self._reader.fetch(self._read, *args)
        pairs = [hold.destination for hold in holds if hold.destination.routing_key is not None]
        args += [
            [hold.destination.exchange for hold in holds if hold.destination.routing_key is None],
            [pair.exchange for pair in pairs],
            [pair.routing_key for pair in pairs],
            [hold.row.ordering_key for hold in holds if hold.row.ordering_key is not None],
        ]
        return await self._reader.fetch(self._read_carefully, *args)

    async def delete(self, ids: Iterable[int]) -> None:
        """Remove rows that were confirmed; in id order, so that two writers cannot deadlock."""
        await self._writer.fetch(self._delete, sorted(ids))

    async def park(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Set rows aside, each with its reason."""
        await self._writer.fetch(self._park, [row_id for row_id, _ in reasons], [reason for _, reason in reasons])

    async def note(self, row: Row, reason: str, *, attempts: int) -> None:
        """Write on a waiting row why it waits."""
        await self._writer.fetch(self._note, row.id, reason, attempts)

    async def measure(self, slots: Iterable[int]) -> Measure:
        """What waits in these slots, and what is parked in all."""
        record = (await self._reader.fetch(self._measure, list(slots)))[0]
        return Measure(record["backlog"], record["oldest_seconds"], record["parked"])
