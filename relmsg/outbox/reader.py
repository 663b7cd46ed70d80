"""Reading: the next committed rows of our slots, held against every rule and put in line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from relmsg.clock import Clock
from relmsg.errors import DatabaseAway
from relmsg.failpoint import reach
from relmsg.outbox.holds import Hold, Holds
from relmsg.outbox.hot import HotKey
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.pace import PIECE_SECONDS, Pace
from relmsg.outbox.page import MOST_BYTES, Malformed, Page
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import Positions, Range, Round
from relmsg.outbox.row import Row
from relmsg.outbox.store import OutboxStore

READ_AHEAD = 8  # batches held in memory at most
LEAST_PER_SLOT = 16
MOST_OVERLOOKED = 16  # rows of one key
LATE_SECONDS = 0.05
STEP_SECONDS = 0.04  # less than it takes to send the batches that are in memory when a read begins
ROW_SECONDS = 10e-6  # what one row costs that is read; the rest of a read's time went by over those it left out
CLOCK_STEP = timedelta(seconds=1)  # how far the database's clock may be set back without harm to this

Park = Callable[[Sequence[Malformed]], Awaitable[None]]


class Reader:
    """Keeps the rows in memory filled up from the slots that may be read.

    Memory is bound: READ_AHEAD batches in all, each slot its share of them (LEAST_PER_SLOT rows, where that is more), a
    key half of that, and as much again for hot keys and for rows that were committed late. Slots that are stepped
    through get half of what is free besides. No read is begun above MOST_BYTES, and none brings more than that.

    A row that was committed late is found by the next look-back. While that takes less than 2 ms it is made at the next
    poll, or LATE_SECONDS after the last one where each poll finds new rows; otherwise it takes a tenth of the time, so
    the row is found after ten times what it takes to look over the rows that were read while any writer of their time
    was open, ten seconds at most, dead rows included. A row whose transaction was open for longer than that is found by
    the sweep, which begins within MARK_SECONDS of its commit and takes as long as a tenth of the time needs for the
    table.
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
        self._capacity = READ_AHEAD * batch
        self._enough = 2 * batch
        self._max_body_bytes = max_body_bytes
        self._forward_pace = Pace(share=1.0, piece=STEP_SECONDS)
        self._back_pace, self._sweep_pace = Pace(), Pace()
        self._check_pace = Pace(share=0.5)
        self._looked_back_at = 0.0
        self._wanting = False
        self._number = 0
        self._share = 0
        self._held: tuple[int, Sequence[Hold]] = (self._holds.version, list(self._holds))
        self._began: dict[int, datetime] = {}
        """When the reading of each slot began, by the database's clock. A row that was written before has no overlooked
        predecessor: whoever writes the rows of a key one after another had committed that before it was written."""
        self.slots: frozenset[int] = frozenset()

    def follow(self, slots: frozenset[int]) -> None:
        """Read these slots from now on: new ones from their beginning; rows of those that are gone are forgotten."""
        if slots == self.slots:
            return
        gone, new = self.slots - slots, slots - self.slots
        self._began = {slot: began for slot, began in self._began.items() if slot in slots}
        if gone:
            for hold in self._holds.forget_slots(gone):
                self._pending.forget(hold.row)
            self._pending.forget_slots(gone)
            self._positions.lose(gone)
        self._positions.own(new)
        self.slots = slots
        self._share = max(LEAST_PER_SLOT, self._capacity // max(1, len(slots)))
        self._pending.lane_room = self._share // 2

    async def read(self) -> bool:
        """Read what there is room for of what is new; whether there may be more.

        :raises DatabaseAway: what was not read will be.
        """
        if not self.slots:
            return False
        if self._pending.left_unread(self.slots):
            self._pending.forget_unproven()
            self._positions.rewind()
        if not self.slots <= self._began.keys():
            began = await self._store.now() - CLOCK_STEP
            self._began = {slot: self._began.get(slot, began) for slot in self.slots}
        now = self._clock.monotonic()
        if self._positions.mark_due(now):
            tops = await self._store.tops(self._positions.tops)
            self._positions.mark(tops, now, await self._store.writers())
        self._wanting = self._pending.ready < self._enough and self._pending.bytes < MOST_BYTES
        if not self._wanting:
            return False
        refilled = await self._refill()
        stepping = self._stepping()
        ranges = self._positions.forward(lambda slot: 0 if slot in stepping else self._room(slot))
        return await self._read_on(ranges) or refilled

    async def read_late(self, *, busy: bool = False) -> bool:
        """Read what was committed behind the last reads, as far as that is due; whether there may be more.

        ``busy``: new rows have just been found, and are on their way to the broker. Then this may wait, for
        LATE_SECONDS after the last time, unless keyed rows wait for it.

        :raises DatabaseAway: what was not read will be.
        """
        now = self._clock.monotonic()
        if not self.slots or (busy and not self._pending.unproven and now - self._looked_back_at < LATE_SECONDS):
            return False
        self._looked_back_at = now
        late = False
        if not self._back_pace.cheap and self._pending.unproven:
            late = await self._prove()  # first: rows wait for it
        late |= await self._look_back()
        if self._pending.unproven:
            late |= await self._prove()
        return await self._sweep() or late

    async def step(self) -> bool:
        """Read a piece of the slots where many rows may be left out, if ``read`` has just read; whether there may be
        more. It comes last, because it may take STEP_SECONDS and bring nothing.

        :raises DatabaseAway: what was not read will be.
        """
        stepping = self._stepping()
        if not stepping or not self._wanting:
            return False
        await self._find_bottoms()
        spare = max(0, self._capacity - len(self._pending)) // (2 * len(stepping))
        pieces = self._positions.forward(
            lambda slot: self._room(slot, spare) if slot in stepping else 0, self._forward_pace.span
        )
        return await self._read_on(pieces, self._forward_pace)

    # -- three ways to read, and a fourth for hot keys -----------------------------------------------------------------

    def _stepping(self) -> set[int]:
        """The slots where there may be many rows to leave out before those to read."""
        leaving_out = self.slots if self._holds else self._pending.hot.slots
        return {slot for slot in leaving_out if self._positions.behind(slot)}

    async def _read_on(self, ranges: Sequence[Range], pace: Pace | None = None) -> bool:
        if not ranges:
            return False
        proven = {each.slot for each in ranges if not self._positions.open(each.slot)}
        began = self._clock.monotonic()
        with self._metrics.reads.time(), self._paced(pace):
            page = await self._fetch(ranges)
        if page is None:
            return True
        if pace is not None:
            now = self._clock.monotonic()
            pace.spent(now - began - ROW_SECONDS * len(page), now)
        more = self._positions.seen(ranges, page.places, cut=page.cut)
        await self._admit(page, proven)
        return more

    async def _refill(self) -> bool:
        wanted: list[tuple[HotKey, int]] = []
        given: Counter[int] = Counter()
        for hot, most in self._pending.refill():
            if self._late_room(hot.slot) - given[hot.slot] >= most:
                wanted.append((hot, most))
                given[hot.slot] += most
        if not wanted:
            return False
        before = self._holds.version, self._positions.epoch
        page = self._page(await self._store.refill(wanted, self._held_now()))
        if before != (self._holds.version, self._positions.epoch):
            return True
        ids: dict[str, list[int]] = {hot.key: [] for hot, _ in wanted}
        for record in page.records:
            ids[record["ordering_key"]].append(record["id"])
        rows: dict[str | None, list[Row]] = {hot.key: [] for hot, _ in wanted}
        for row, _ in page.rows:
            rows[row.ordering_key].append(row)
        for hot, most in wanted:
            read = ids[hot.key]
            reached = max(read, default=hot.tail)
            self._pending.refilled(hot, rows[hot.key], reached=reached, exhausted=len(read) < most and not page.cut)
        await self._set_aside(page.malformed)
        return len(page) > 0

    async def _look_back(self) -> bool:
        now = self._clock.monotonic()
        if not self._back_pace.due(now):
            return False
        round_ = self._positions.look_back(self._number, now)
        late = await self._piece(round_, self._back_pace) if round_.left else False
        if not round_.left and round_ is self._positions.look_back(self._number, now):
            self._pending.prove(self._positions.looked_back())
        return late

    async def _prove(self) -> bool:
        """Where a look-back costs too much to be made at each read: look for earlier rows of the doubtful keys only."""
        if not self._check_pace.due(began := self._clock.monotonic()):
            return False
        number = self._number
        keys = [(key, self._positions.low(slot), high) for key, slot, high in self._pending.doubtful()]
        known = self._pending.known_above(dict.fromkeys(self.slots, min(low for _, low, _ in keys)))
        before = self._holds.version, self._positions.epoch
        records = await self._store.overlooked(keys, known, self._held_now(), most=MOST_OVERLOOKED)
        if before != (self._holds.version, self._positions.epoch):
            return True
        now = self._clock.monotonic()
        self._check_pace.spent(now - began, now)
        await self._admit(self._page(records), self.slots)
        if max(Counter(record["ordering_key"] for record in records).values(), default=0) < MOST_OVERLOOKED:
            self._pending.prove(number)
        return bool(records)

    async def _sweep(self) -> bool:
        now = self._clock.monotonic()
        round_ = self._positions.sweep(now)
        return round_ is not None and self._sweep_pace.due(now) and await self._piece(round_, self._sweep_pace)

    async def _piece(self, round_: Round, pace: Pace) -> bool:
        await self._find_bottoms()
        ranges = round_.ranges(self._late_room, pace.span)
        if not ranges or self._pending.bytes >= 2 * MOST_BYTES:
            return False
        began = self._clock.monotonic()
        with self._metrics.looks_back.time(), self._paced(pace):
            page = await self._fetch(ranges)
        if page is None:
            return True
        now = self._clock.monotonic()
        pace.spent(now - began, now)
        round_.seen(ranges, page.places, cut=page.cut)
        self._positions.looked_at(round_)
        await self._admit(page, frozenset())
        return len(page) > 0

    # -- what all of them share ----------------------------------------------------------------------------------------

    def _room(self, slot: int, spare: int = 0) -> int:
        return 0 if self._pending.crowded(slot) else self._share + spare - self._pending.in_slot(slot)

    def _late_room(self, slot: int) -> int:
        """For what does not come forward: a slot that is full of other rows must not keep it out."""
        return 2 * self._share - self._pending.in_slot(slot)

    def _held_now(self) -> Sequence[Hold]:
        """What is held; the same list until that changes, so that the store need not write it anew for each read."""
        if self._held[0] != self._holds.version:
            self._held = self._holds.version, list(self._holds)
        return self._held[1]

    async def _find_bottoms(self) -> None:
        if slots := self._positions.bottomless:
            self._positions.begin(slots, await self._store.bottoms(slots))

    def _page(self, records: Sequence[Any]) -> Page:
        return Page(records, max_body_bytes=self._max_body_bytes)

    async def _fetch(self, ranges: Sequence[Range]) -> Page | None:
        """What is there; None when the read was told something that is no longer true: then nothing was read."""
        self._number += 1
        known = self._pending.known_above({each.slot: each.low for each in ranges})
        before = self._holds.version, self._positions.epoch
        records = await self._store.read(ranges, known, self._pending.hot, self._held_now())
        if before != (self._holds.version, self._positions.epoch):
            return None
        if records:
            reach("relay.after_read")
        return self._page(records)

    @contextmanager
    def _paced(self, pace: Pace | None) -> Iterator[None]:
        """A piece that the database does not finish, as under a ``statement_timeout``, is followed by a smaller one."""
        began = self._clock.monotonic()
        try:
            yield
        except DatabaseAway:
            now = self._clock.monotonic()
            if pace is not None and now - began > PIECE_SECONDS:
                pace.spent(now - began, now)
            raise

    async def _admit(self, page: Page, proven: Collection[int]) -> None:
        for row, record in page.rows:
            self._pending.admit(
                row,
                read=self._number,
                proven=row.ordering_key is None or row.slot in proven or record["created_at"] < self._began[row.slot],
            )
        await self._set_aside(page.malformed)

    async def _set_aside(self, malformed: Sequence[Malformed]) -> None:
        """Last of all: while it waits for the database, what was read may cease to be true."""
        if malformed:
            await self._park(malformed)
