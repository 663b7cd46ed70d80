"""The rows a relay has read and not yet settled: what may be sent now, and what has to wait its turn. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping

from relmsg.outbox.hot import HotKey, HotKeys
from relmsg.outbox.row import Row

NEVER = 2**63


class Pending:
    """Rows in memory, by id.

    Holds: of one ordering key at most one row is out at a time, the one with the smallest id that is known; the others
    stand in its lane. A row is here exactly once, from ``admit`` to ``confirm`` or ``forget``; the id of a confirmed
    row stays known until ``deleted``, and that of one to be parked until ``parked``, so that neither is read again
    before it is written. A row whose slot was lost while it was out is never made ready again.

    A lane takes ``lane_room`` rows and no more. The key is *hot* then: later rows of it are refused, and the reader
    fetches them by ``refill``. At most HOT_PER_SLOT keys of a slot are hot, then the slot is ``crowded``.
    """

    def __init__(self) -> None:
        self.lane_room = 32
        self.bytes = 0
        self._rows: dict[int, Row] = {}
        self._ready: OrderedDict[int, Row] = OrderedDict()
        self._out: set[int] = set()
        self._lanes: dict[str, deque[Row]] = {}
        self._unproven: OrderedDict[int, int] = OrderedDict()
        self._hot = HotKeys()
        self._confirmed: dict[int, int] = {}
        self._parking: dict[int, int] = {}
        self._lost: set[int] = set()
        self._unread: set[int] = set()
        self._in_slot: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: Row) -> bool:
        return self._rows.get(row.id) is row

    @property
    def ready(self) -> int:
        """How many rows may be sent now."""
        return len(self._ready)

    @property
    def unproven(self) -> int:
        """How many keyed rows wait until it is certain that no earlier row of their keys was overlooked."""
        return len(self._unproven)

    @property
    def confirmed(self) -> int:
        """How many rows are confirmed and not yet deleted."""
        return len(self._confirmed)

    def known_above(self, lows: Mapping[int, int]) -> list[int]:
        """The ids that a read above these ids of their slots has to leave out.

        They are of the rows in memory, and of those whose delete or parking is not yet written.
        """
        known = [row.id for row in self._rows.values() if row.id > lows.get(row.slot, NEVER)]
        for settled in (self._confirmed, self._parking):
            known += [row_id for row_id, slot in settled.items() if row_id > lows.get(slot, NEVER)]
        return known

    @property
    def hot(self) -> HotKeys:
        """The keys whose rows behind ``tail`` no other read should bring."""
        return self._hot

    def in_slot(self, slot: int) -> int:
        """How many rows of a slot are in memory, or to be parked."""
        return self._in_slot[slot]

    def crowded(self, slot: int) -> bool:
        """Whether a slot has as many hot keys as it may: nothing more of it should be read until one has cooled."""
        return self._hot.crowded(slot)

    def unsettled_of_slot(self, slot: int) -> int:
        """How many rows of a slot are at the broker, or confirmed and not yet deleted."""
        slots = (*(self._rows[row_id].slot for row_id in self._out), *self._confirmed.values())
        return slots.count(slot)

    def admit(self, row: Row, *, read: int = 0, proven: bool = True) -> None:
        """Take a row that was read; a row that is here already changes nothing.

        A keyed row that is not ``proven`` waits until ``prove`` is told of its ``read``: a smaller id of its key may
        have become visible behind the reader's back.
        """
        if row.id in self._rows or row.id in self._confirmed or row.id in self._parking:
            return
        key = row.ordering_key
        if key is None:
            self._keep(row)
            self._ready[row.id] = row
            return
        lane = self._lanes.get(key)
        hot = self._hot.get(key)
        if hot is not None and row.id > hot.tail:
            return
        if hot is None and lane is not None and len(lane) >= self.lane_room and row.id > lane[-1].id:
            self._hot.heat(HotKey(key, row.slot, lane[-1].id))
            return
        self._keep(row)
        if not proven:
            self._unproven[row.id] = read
        if lane is None:
            lane = self._lanes[key] = deque()
        position = len(lane)
        # Committed late, under a smaller id: before what has not left yet, behind what is on its way.
        while position > 0 and lane[position - 1].id > row.id and self._may_wait(lane[position - 1]):
            position -= 1
        if position == 0 and lane:
            self._ready.pop(lane[0].id, None)
        lane.insert(position, row)
        if position == 0:
            self._advance(lane)

    def doubtful(self) -> list[tuple[str, int, int]]:
        """The keys that have unproven rows, each with its slot and the largest id of these rows."""
        keys: dict[str, tuple[str, int, int]] = {}
        for row_id in self._unproven:
            row = self._rows[row_id]
            key = row.ordering_key or ""
            keys[key] = (key, row.slot, max(row_id, keys.get(key, (key, 0, 0))[2]))
        return list(keys.values())

    def refill(self) -> list[tuple[HotKey, int]]:
        """The hot keys whose lanes are half empty, each with the number of rows to read behind its tail."""
        wanted = []
        for hot in self._hot:
            lane = self._lanes.get(hot.key)
            left = len(lane) if lane is not None else 0
            if left <= self.lane_room // 2:
                wanted.append((hot, self.lane_room - left))
        return wanted

    def refilled(self, hot: HotKey, rows: Iterable[Row], *, reached: int, exhausted: bool) -> None:
        """Take what followed the tail of a hot key, up to ``reached``; ``exhausted``: nothing more does."""
        if self._hot.get(hot.key) != hot:
            return  # it was forgotten meanwhile, and will be read anew
        self._hot.cool(hot.key)
        for row in rows:
            self.admit(row)
        if not exhausted and self._hot.get(hot.key) is None:
            self._hot.heat(HotKey(hot.key, hot.slot, reached))

    def prove(self, read: int) -> None:
        """No earlier row was overlooked of what came with this read or one before it."""
        for row_id, its_read in list(self._unproven.items()):
            if its_read > read:
                return
            del self._unproven[row_id]
            row = self._rows[row_id]
            if (lane := self._lanes[row.ordering_key or ""])[0] is row:
                self._advance(lane)

    def take(self, most: int, *, unless: Callable[[Row], bool]) -> list[Row]:
        """Up to ``most`` rows to send now; they are out until ``confirm``, ``again`` or ``forget``.

        Rows for which ``unless`` holds are forgotten with their lanes: they will be read again.
        """
        taken: list[Row] = []
        while self._ready and len(taken) < most:
            _, row = self._ready.popitem(last=False)
            if unless(row):
                self.forget(row)
                continue
            self._out.add(row.id)
            taken.append(row)
        return taken

    def put_out(self, row: Row) -> None:
        """A row that was waiting is being sent after all."""
        if row in self:
            self._out.add(row.id)

    def owns(self, row: Row) -> bool:
        """Whether the row is still here and its slot was ours all the while: otherwise another relay may have it."""
        return row in self and row.id not in self._lost

    def confirm(self, row: Row) -> None:
        """The row is at the broker: the next of its lane may go. Its id stays known until ``deleted``."""
        self._confirmed[row.id] = row.slot
        self.done(row)

    def deleted(self, ids: Iterable[int]) -> None:
        """These confirmed rows are gone from the table."""
        for row_id in ids:
            self._confirmed.pop(row_id, None)

    def undeletable(self, row_id: int) -> int | None:
        """A confirmed row that the table does not let go; its slot, or None if it is not confirmed."""
        return self._confirmed.pop(row_id, None)

    def park(self, row_id: int, slot: int) -> None:
        """A row that is to be parked; its id stays known until ``parked``."""
        if row_id not in self._parking:
            self._parking[row_id] = slot
            self._in_slot[slot] += 1

    def parked(self, ids: Iterable[int]) -> None:
        """These rows are parked in the table."""
        for row_id in ids:
            slot = self._parking.pop(row_id, None)
            if slot is not None:
                self._in_slot[slot] -= 1

    def done(self, row: Row) -> None:
        """The row is settled: the next of its lane may go."""
        if self._rows.get(row.id) is not row:
            return
        self._remove(row)
        if row.ordering_key is None:
            return
        lane = self._lanes[row.ordering_key]
        lane.popleft()
        if lane:
            self._advance(lane)
            return
        del self._lanes[row.ordering_key]

    def again(self, row: Row) -> None:
        """The row has to be sent again, before anything that came after it; forgotten if its slot was lost."""
        if row.id in self._lost:
            self.forget(row)
        elif row in self:
            self._out.discard(row.id)
            self._ready[row.id] = row
            self._ready.move_to_end(row.id, last=False)

    def keep_only(self, row: Row) -> None:
        """The row waits for its destination: it stays, those behind it in its lane are forgotten."""
        if row not in self:
            return
        self._out.discard(row.id)
        if row.ordering_key is not None:
            self._hot.cool(row.ordering_key)
            self._cut_behind(self._lanes[row.ordering_key])

    def forget(self, row: Row) -> None:
        """Drop the row and its lane from memory; the table still has them."""
        if row not in self:
            return
        if row.id in self._lost:
            self._unread.add(row.slot)
        if row.ordering_key is None:
            self._remove(row)
            return
        self._hot.cool(row.ordering_key)
        for waiting in self._lanes.pop(row.ordering_key):
            self._remove(waiting)

    def forget_slots(self, slots: Iterable[int]) -> None:
        """Drop all rows of these slots that are not out; those that are out end with their answer."""
        gone = set(slots)
        self._hot.forget_slots(gone)
        self._lost.update(row_id for row_id in self._out if self._rows[row_id].slot in gone)
        self.parked([row_id for row_id, slot in self._parking.items() if slot in gone])
        self._unread -= gone
        for row in list(self._rows.values()):
            if row.slot not in gone or row.id not in self._rows or row.id in self._out:
                continue
            lane = self._lanes.get(row.ordering_key or "")
            if lane is not None and lane[0].id in self._out:
                self._cut_behind(lane)
            else:
                self.forget(row)

    def left_unread(self, slots: Iterable[int]) -> bool:
        """Whether a row of these slots was left out by reads and then forgotten, as its slot had been lost meanwhile.

        Asking ends it: the slots have to be read anew.
        """
        if not self._unread:
            return False
        left, self._unread = self._unread, set()
        return not left.isdisjoint(slots)

    def forget_unproven(self) -> None:
        """Drop the rows that are not proven, and what is behind them: they will be read again, from the beginning."""
        while self._unproven:
            row = self._rows[next(iter(self._unproven))]
            key = row.ordering_key or ""
            self._hot.cool(key)
            lane = self._lanes[key]
            while row.id in self._unproven:
                self._remove(lane.pop())
            if not lane:
                del self._lanes[key]

    def _may_wait(self, row: Row) -> bool:
        """Whether a row is neither on its way nor the probe of a held destination: those are always heads."""
        lane = self._lanes[row.ordering_key or ""]
        return lane[0] is not row or row.id in self._ready or row.id in self._unproven

    def _advance(self, lane: deque[Row]) -> None:
        """Let the head of a lane go, if it may: nothing of its key is out, and it is proven."""
        head = lane[0]
        if head.id in self._unproven or head.id in self._out:
            return
        self._ready[head.id] = head

    def _cut_behind(self, lane: deque[Row]) -> None:
        while len(lane) > 1:
            self._remove(lane.pop())

    def _keep(self, row: Row) -> None:
        self._rows[row.id] = row
        self._in_slot[row.slot] += 1
        self.bytes += len(row.publish.body)

    def _remove(self, row: Row) -> None:
        del self._rows[row.id]
        self._ready.pop(row.id, None)
        if self._unproven:
            self._unproven.pop(row.id, None)
        self._out.discard(row.id)
        if self._lost:
            self._lost.discard(row.id)
        self._in_slot[row.slot] -= 1
        self.bytes -= len(row.publish.body)
