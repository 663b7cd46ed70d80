"""How far each slot has been read, and from where it has to be looked over again. Pure; the time comes in.

Ids are given when a row is written and become visible when its transaction commits, so a small id may appear late. A
cursor would lose such a row (reliability D1), and stepping over everything again at each read makes the dead rows of
what was sent a cost of every read (D9). So there are three ways to read:

- *forward*, from the frontier of each slot, at every read;
- the *look-back* over (low, frontier], for rows that became visible behind the frontier. ``low`` is where the ids of a
  slot ended when none was writing of those that write now, or WINDOW_SECONDS ago: below it are the rows of transactions
  that were open for longer than that since they wrote. In a backlog ``low`` is ahead of the frontier, and there is
  nothing to look back at;
- the *sweep* of everything up to the frontier, for those: when one of them is over, and once a minute besides.

Look-back and sweep go piece by piece, each piece bounded in ids, and so do forward reads that leave rows out. What is
below the *bottom* of a slot, where its first row was when last looked, may be any number of ids: it costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

WINDOW_SECONDS = 10.0
SWEEP_SECONDS = 60.0
MARK_SECONDS = 1.0
NO_END = 2**63 - 1


class Mark(NamedTuple):
    """Where the ids of the slots ended, and which transactions are left of those that were writing by then."""

    at: float
    tops: dict[int, int]
    writers: set[str]


@dataclass(frozen=True, slots=True)
class Range:
    """What to read of one slot: at most ``room`` rows with ids above ``low`` and up to ``high``."""

    slot: int
    low: int
    room: int
    high: int = NO_END


@dataclass(slots=True)
class Round:
    """One way through what was read before: of each slot what is left, from where to where.

    ``began`` is the number of the last read before it: whatever was visible then is found by the end of the round.
    """

    left: dict[int, tuple[int, int]]
    began: int
    lows: Mapping[int, int] = field(default_factory=dict)
    bottoms: Mapping[int, int] = field(default_factory=dict)

    def ranges(self, room: Callable[[int], int], span: int) -> list[Range]:
        """The next piece: of each slot that has room, ``span`` ids above its bottom."""
        return [
            Range(slot, low, rows, min(max(low, self.bottoms.get(slot, low)) + span, high))
            for slot, (low, high) in self.left.items()
            if (rows := room(slot)) > 0
        ]

    def seen(self, ranges: Sequence[Range], read: Iterable[tuple[int, int]], *, cut: bool) -> None:
        """Take note of a piece."""
        for each, reached, _ in _reached(ranges, read, cut=cut):
            if each.slot not in self.left:
                continue
            end = self.left[each.slot][1]
            if reached >= end:
                del self.left[each.slot]
            else:
                self.left[each.slot] = (reached, end)


class Positions:
    """How far each slot has been read."""

    def __init__(self) -> None:
        self.epoch = 0  # changes whenever what a read under way will bring is no longer what should be noted
        self._frontier: dict[int, int] = {}
        self._low: dict[int, int] = {}
        self._top: dict[int, int] = {}
        self._bottom: dict[int, int] = {}
        self._marks: deque[Mark] = deque()
        self._marked_at = -inf
        self._past: dict[int, int] = {}
        """Up to where all rows are visible that will ever be."""
        self._sure: dict[int, tuple[int, int]] = {}
        """From where to where the ids were past before they were read: no row can have become visible behind that."""
        self._look_back: Round | None = None
        self._sweep: Round | None = None
        self._swept_at: float | None = None
        self._overdue: set[str] = set()
        """The writers for whom the window no longer waits."""
        self._sweep_due = False

    def own(self, slots: Iterable[int]) -> None:
        """Slots that are new here are read from their beginning."""
        for slot in slots:
            self._frontier[slot] = self._low[slot] = self._top[slot] = 0
            self._bottom.pop(slot, None)
            self._marked_at = -inf
            self.epoch += 1

    def lose(self, slots: Iterable[int]) -> None:
        """Slots that are no longer ours are not read."""
        for slot in slots:
            for known in (self._frontier, self._low, self._top, self._bottom, self._past, self._sure):
                known.pop(slot, None)
            for each in (self._look_back, self._sweep):
                if each is not None:
                    each.left.pop(slot, None)
            for mark in self._marks:
                mark.tops.pop(slot, None)
            self.epoch += 1

    def rewind(self) -> None:
        """Read every slot from its beginning again, in order; what is in memory has to be left out by the read."""
        self._frontier = dict.fromkeys(self._frontier, 0)
        self._look_back = self._sweep = None
        self._bottom.clear()
        self.epoch += 1

    # -- where the ids begin and end -----------------------------------------------------------------------------------

    @property
    def bottomless(self) -> list[int]:
        """The slots that have rows, and of which it is not known where their ids begin."""
        return [slot for slot, top in self._top.items() if top and slot not in self._bottom]

    def begin(self, slots: Iterable[int], found: Iterable[tuple[int, int]]) -> None:
        """Take note where the ids of these slots begin; those that were not found have no rows any more."""
        self._bottom.update((slot, self._top[slot]) for slot in slots if slot in self._top)
        self._bottom.update((slot, bottom) for slot, bottom in found if slot in self._top)

    def mark_due(self, now: float) -> bool:
        """Whether it is time to ask where the ids of each slot end."""
        return bool(self._frontier) and now - self._marked_at >= MARK_SECONDS

    @property
    def tops(self) -> list[tuple[int, int]]:
        """The slots, each with the id above which to look for the end of its ids."""
        return [(slot, max(top, self._frontier[slot])) for slot, top in self._top.items()]

    def mark(self, found: Iterable[tuple[int, int]], asked: float, writers: Iterable[str]) -> None:
        """Take note where the ids of the slots ended at the time ``asked``; ``found`` are those with new ids.

        ``writers`` are the transactions that may have drawn ids and are still open. They must have been asked for after
        the ids: whoever drew one of these and is not among them is over.
        """
        writing = set(writers)
        self._marked_at = asked
        self._top = dict(self.tops)
        self._top.update((slot, top) for slot, top in found if slot in self._top)
        self._sweep_due |= not self._overdue <= writing
        for writers in (self._overdue, *(mark.writers for mark in self._marks)):
            writers.intersection_update(writing)
        self._marks.append(Mark(asked, dict(self._top), writing))
        self._settle(asked)

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, room: Callable[[int], int], span: int | None = None) -> list[Range]:
        """What to read next, for the slots that have room.

        ``span`` bounds the ids of a read that leaves out rows, and might step over millions: so many above the slot's
        bottom. Above the known end of a slot's ids there is no bound: the frontier must not pass ids that do not exist
        yet.
        """
        return [
            Range(slot, low, rows, NO_END if span is None else self._end(slot, low, span))
            for slot, low in self._frontier.items()
            if (rows := room(slot)) > 0
        ]

    def _end(self, slot: int, low: int, span: int) -> int:
        top = self._top[slot]
        return NO_END if low >= top else min(max(low, self._bottom.get(slot, low)) + span, top)

    def seen(self, ranges: Sequence[Range], read: Iterable[tuple[int, int]], *, cut: bool) -> bool:
        """Take note of a read: ``read`` are its (slot, id) pairs; ``cut``: not all that was there came back.

        Whether there may be more: a frontier moved, and the read did not come to the end of its slot.
        """
        more = False
        for each, reached, ended in _reached(ranges, read, cut=cut):
            if reached > self._frontier.get(each.slot, reached):
                self._frontier[each.slot] = reached
                more |= not ended or each.high != NO_END
        return more

    def behind(self, slot: int) -> bool:
        """Whether a slot has not been read to the known end of its ids."""
        return self._frontier[slot] < self._top[slot]

    def open(self, slot: int) -> bool:
        """Whether rows may still become visible behind the frontier, by transactions younger than the window."""
        low, high = self._doubtful(slot)
        return low < high

    def low(self, slot: int) -> int:
        """From where rows may still become visible."""
        return self._low[slot]

    # -- back ----------------------------------------------------------------------------------------------------------

    def look_back(self, read: int, now: float) -> Round:
        """The round over the window that is under way, or a new one; ``read`` is the number of the last read."""
        if self._look_back is None:
            self._settle(now)
            left = {slot: (low, high) for slot in self._frontier for low, high in [self._doubtful(slot)] if low < high}
            self._look_back = Round(left, read, self._past, self._bottom)
        return self._look_back

    def _doubtful(self, slot: int) -> tuple[int, int]:
        low, high = self._low[slot], self._frontier[slot]
        begin, end = self._sure.get(slot, (0, 0))
        if begin <= low <= end:
            low = end
        return low, begin if begin < high <= end else high

    def _settle(self, now: float) -> None:
        """Take note of the marks whose writers are over or have had the time for it: what of their ids is read from now
        on was visible before."""
        while self._marks and (not self._marks[0].writers or now - self._marks[0].at >= WINDOW_SECONDS):
            _, self._past, writers = self._marks.popleft()
            self._overdue |= writers
            for slot, top in self._past.items():
                if (frontier := self._frontier[slot]) < top:
                    begin, end = self._sure.get(slot, (frontier, top))
                    self._sure[slot] = (begin if frontier <= end else frontier, top)

    def looked_back(self) -> int:
        """The round over the window is complete: the window moves on. The number of the last read before the round.

        Of the rows of that read and of those before, none has an overlooked predecessor: one that became visible
        before such a row did was there when the round began.
        """
        done, self._look_back = self._look_back, None
        assert done is not None
        self.looked_at(done)
        return done.began

    def looked_at(self, round_: Round) -> None:
        """A piece of a round is done: for the slots that are through with it the window moves on."""
        for slot, low in self._low.items():
            if slot not in round_.left:
                self._low[slot] = max(low, round_.lows.get(slot, 0))

    def sweep(self, now: float) -> Round | None:
        """The sweep that is under way, or due; None between two sweeps."""
        if self._swept_at is None:
            self._swept_at = now
        if self._sweep is None and (self._sweep_due or now - self._swept_at >= SWEEP_SECONDS):
            self._swept_at, self._sweep_due = now, False
            self._bottom.clear()
            left = {slot: (0, high) for slot, high in self._frontier.items() if high}
            self._sweep = Round(left, 0, bottoms=self._bottom)
        if self._sweep is not None and not self._sweep.left:
            self._sweep = None
        return self._sweep


def _reached(
    ranges: Sequence[Range], read: Iterable[tuple[int, int]], *, cut: bool
) -> Iterable[tuple[Range, int, bool]]:
    """Up to which id each range was read for good, and whether that is all of it: it is, unless as many came as there
    was room for, or the read was cut."""
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    for slot, row_id in read:
        last[slot] = max(last.get(slot, 0), row_id)
        count[slot] = count.get(slot, 0) + 1
    for each in ranges:
        ended = count.get(each.slot, 0) < each.room and not cut
        yield each, each.high if ended and each.high != NO_END else last.get(each.slot, each.low), ended
