"""Reading: the next committed rows of our slots, held against every rule and put in line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from relmsg.clock import Clock
from relmsg.errors import InvalidMessage
from relmsg.failpoint import reach
from relmsg.outbox.holds import Holds
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import Positions
from relmsg.outbox.row import row_of
from relmsg.outbox.store import MOST_BYTES, OutboxStore

READ_AHEAD = 4  # batches held in memory at most
LEAST_PER_SLOT = 16

Park = Callable[[Sequence[tuple[int, str]]], Awaitable[None]]


class Reader:
    """Keeps the rows in memory filled up from the slots that may be read.

    Memory is bound: READ_AHEAD batches in all, each slot its share of them (LEAST_PER_SLOT rows, where that is more),
    MOST_BYTES a read.
    """

    def __init__(
        self,
        store: OutboxStore,
        pending: Pending,
        positions: Positions,
        holds: Holds,
        park: Park,
        *,
        metrics: RelayMetrics,
        clock: Clock,
        batch: int,
        max_body_bytes: int,
    ) -> None:
        self._store = store
        self._pending = pending
        self._positions = positions
        self._holds = holds
        self._park = park
        self._metrics = metrics
        self._clock = clock
        self._batch = batch
        self._max_body_bytes = max_body_bytes
        self.slots: frozenset[int] = frozenset()

    def follow(self, slots: frozenset[int]) -> None:
        """Read these slots from now on: new ones from their beginning; rows of those that are gone are forgotten."""
        gone, new = self.slots - slots, slots - self.slots
        if gone:
            for hold in self._holds.forget_slots(gone):
                self._pending.forget(hold.row)
            self._pending.forget_slots(gone)
            self._positions.lose(gone)
        self._positions.own(new)
        self.slots = slots

    async def read(self) -> int:
        """Read what there is room for; how many rows came.

        :raises DatabaseAway: nothing was read.
        """
        capacity = READ_AHEAD * self._batch
        if not self.slots or self._pending.ready >= self._batch or len(self._pending) >= capacity:
            return 0
        share = max(LEAST_PER_SLOT, capacity // len(self.slots))
        ranges = self._positions.ranges(lambda slot: share - self._pending.in_slot(slot), self._clock.monotonic())
        if not ranges:
            return 0
        with self._metrics.reads.time():
            records = await self._store.read(ranges, self._pending.ids, list(self._holds))
        if records:
            reach("relay.after_read")
        cut = sum(len(record["body"]) for record in records) >= MOST_BYTES
        self._positions.seen(ranges, ((record["slot"], record["id"]) for record in records), cut=cut)
        malformed: list[tuple[int, str]] = []
        for record in records:
            try:
                self._pending.admit(row_of(record, max_body_bytes=self._max_body_bytes))
            except InvalidMessage as error:
                malformed.append((record["id"], f"cannot be sent: {error}"))
        if malformed:
            await self._park(malformed)
        return len(records)
