"""The rows a relay has read and not yet settled: what may be sent now, and what has to wait its turn. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable

from relmsg.outbox.row import Row


class Pending:
    """Rows in memory, by id.

    Holds: of one ordering key at most one row is out at a time, the one with the smallest id that is known; the others
    stand in its lane. A row is here exactly once, from ``admit`` to ``done`` or ``forget``. No slot takes more than
    ``slot_room`` rows, so that one busy key fills its own slot's share and no more.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._ready: OrderedDict[int, Row] = OrderedDict()
        self._out: set[int] = set()
        self._lanes: dict[str, deque[Row]] = {}
        self._in_slot: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: Row) -> bool:
        return row.id in self._rows

    @property
    def ready(self) -> int:
        """How many rows may be sent now."""
        return len(self._ready)

    @property
    def ids(self) -> list[int]:
        """The ids of all rows in memory: the next read leaves them out."""
        return list(self._rows)

    def in_slot(self, slot: int) -> int:
        """How many rows of a slot are in memory."""
        return self._in_slot[slot]

    def out_of_slot(self, slot: int) -> int:
        """How many rows of a slot are at the broker, unanswered or being settled."""
        return sum(1 for row_id in self._out if self._rows[row_id].slot == slot)

    def admit(self, row: Row) -> None:
        """Take a row that was read; a row that is here already changes nothing."""
        if row.id in self._rows:
            return
        self._rows[row.id] = row
        self._in_slot[row.slot] += 1
        if row.ordering_key is None:
            self._ready[row.id] = row
            return
        lane = self._lanes.get(row.ordering_key)
        if lane is None:
            self._lanes[row.ordering_key] = deque([row])
            self._ready[row.id] = row
            return
        position = len(lane)
        while position > 1 and lane[position - 1].id > row.id:
            position -= 1  # committed late, under a smaller id; the head may be on its way already
        lane.insert(position, row)

    def take(self, most: int, *, unless: Callable[[Row], bool]) -> list[Row]:
        """Up to ``most`` rows to send now; they are out until ``done``, ``again`` or ``forget``.

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
        if row.id in self._rows:
            self._out.add(row.id)

    def done(self, row: Row) -> None:
        """The row is settled for good: the next of its lane may go."""
        if row.id not in self._rows:
            return
        self._remove(row)
        if row.ordering_key is None:
            return
        lane = self._lanes[row.ordering_key]
        lane.popleft()
        if lane:
            self._ready[lane[0].id] = lane[0]
        else:
            del self._lanes[row.ordering_key]

    def again(self, row: Row) -> None:
        """The row has to be sent again, before anything that came after it."""
        if row.id in self._rows:
            self._out.discard(row.id)
            self._ready[row.id] = row
            self._ready.move_to_end(row.id, last=False)

    def keep_only(self, row: Row) -> None:
        """The row waits for its destination: it stays, those behind it in its lane are forgotten."""
        self._out.discard(row.id)
        if row.ordering_key is not None and row.id in self._rows:
            self._cut_behind(self._lanes[row.ordering_key])

    def forget(self, row: Row) -> None:
        """Drop the row and its lane from memory; the table still has them."""
        if row.id not in self._rows:
            return
        if row.ordering_key is None:
            self._remove(row)
            return
        for waiting in self._lanes.pop(row.ordering_key):
            self._remove(waiting)

    def forget_slots(self, slots: Iterable[int]) -> None:
        """Drop all rows of these slots that are not out."""
        gone = set(slots)
        for row in list(self._rows.values()):
            if row.slot not in gone or row.id not in self._rows or row.id in self._out:
                continue
            lane = self._lanes.get(row.ordering_key or "")
            if lane is not None and lane[0].id in self._out:
                self._cut_behind(lane)
            else:
                self.forget(row)

    def _cut_behind(self, lane: deque[Row]) -> None:
        while len(lane) > 1:
            self._remove(lane.pop())

    def _remove(self, row: Row) -> None:
        del self._rows[row.id]
        self._ready.pop(row.id, None)
        self._out.discard(row.id)
        self._in_slot[row.slot] -= 1
