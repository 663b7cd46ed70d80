"""From where each slot is read. Pure; the time comes in.

Ids are given when a row is written and become visible when its transaction commits, so a small id may appear late. A
cursor would lose such a row (reliability D1). Therefore every read looks back over a trailing window of ten seconds,
and once a minute, and whenever a held destination is released, each slot is swept from its beginning. Between the two,
the low bound keeps a read from stepping over the dead rows of everything sent before (D9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 10.0
SWEEP_SECONDS = 60.0
MARK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Range:
    """What to read of one slot: at most ``room`` rows with ids above ``low``."""

    slot: int
    low: int
    room: int


class Positions:
    """How far each slot has been read."""

    def __init__(self) -> None:
        self._frontier: dict[int, int] = {}
        self._marks: deque[tuple[float, dict[int, int]]] = deque()
        self._low: dict[int, int] = {}
        self._sweeping: dict[int, int] = {}
        self._swept_at = 0.0

    @property
    def sweeping(self) -> bool:
        """Whether a sweep is under way."""
        return bool(self._sweeping)

    def own(self, slots: Iterable[int]) -> None:
        """Slots that are new here are read from their beginning."""
        for slot in slots:
            self._frontier[slot] = 0
            self._low[slot] = 0
            self._sweeping[slot] = 0

    def lose(self, slots: Iterable[int]) -> None:
        """Slots that are no longer ours are not read."""
        for slot in slots:
            self._frontier.pop(slot, None)
            self._low.pop(slot, None)
            self._sweeping.pop(slot, None)

    def sweep(self) -> None:
        """Read every slot from its beginning; what is in memory is left out by the read itself."""
        self._sweeping = dict.fromkeys(self._frontier, 0)

    def ranges(self, room: Callable[[int], int], now: float) -> list[Range]:
        """What to read next, for the slots that have room."""
        self._mark(now)
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self.sweep()
        return [
            Range(slot, self._sweeping.get(slot, self._low[slot]), rows)
            for slot in self._frontier
            if (rows := room(slot)) > 0
        ]

    def seen(self, ranges: Sequence[Range], read: Iterable[tuple[int, int]], *, cut: bool) -> None:
        """Take note of a read: ``read`` are its (slot, id) pairs; ``cut``: not all that was there came back."""
        last: dict[int, int] = {}
        count: dict[int, int] = {}
        for slot, row_id in read:
            last[slot] = max(last.get(slot, 0), row_id)
            count[slot] = count.get(slot, 0) + 1
        for each in ranges:
            if each.slot not in self._frontier:
                continue
            reached = last.get(each.slot, each.low)
            self._frontier[each.slot] = max(self._frontier[each.slot], reached)
            if each.slot in self._sweeping:
                if count.get(each.slot, 0) < each.room and not cut:
                    del self._sweeping[each.slot]
                else:
                    self._sweeping[each.slot] = reached

    def _mark(self, now: float) -> None:
        if not self._marks or now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, dict(self._frontier)))
        while self._marks and now - self._marks[0][0] >= WINDOW_SECONDS:
            _, frontier = self._marks.popleft()
            for slot in self._low:
                self._low[slot] = max(self._low[slot], min(frontier.get(slot, 0), self._frontier[slot]))
