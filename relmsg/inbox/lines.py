"""What may be handled next: a line of messages for each handler, and lanes that keep those of one key in order.

Pure bookkeeping, without tasks or clocks; ``relmsg.inbox.dispatcher`` runs what comes out of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from relmsg.inbox.pace import Pace

LINGER_SECONDS = 0.025


class Waiting(Protocol):
    """A message that waits for its handler."""

    @property
    def key(self) -> Hashable | None:
        """Messages of one key take effect in the order they came; None: no order."""

    @property
    def alone(self) -> bool:
        """Whether it must not share a transaction."""


T = TypeVar("T", bound=Waiting)


class Line(Generic[T]):
    """The messages that wait for one handler, those that may go on in the order they came."""

    __slots__ = ("due", "pace", "ready", "running")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.ready: deque[T] = deque()
        self.running = 0
        self.due: float | None = None

    def may_begin(self, now: float) -> bool:
        """Whether a unit should begin now.

        Nothing waits where nothing is under way. Otherwise a group that is not full waits until one that runs has ended
        (while one commits, the next fills), and not longer than 25 ms.
        """
        if not self.ready:
            return False
        if self.running == 0 or len(self.ready) >= self.pace.size or self.ready[0].alone:
            return True
        if self.due is None:
            self.due = now + LINGER_SECONDS
        return now >= self.due

    def take(self) -> list[T]:
        """The next unit: a group, or one message alone."""
        self.due = None
        ready, size = self.ready, self.pace.size
        items = [ready.popleft()]
        if not items[0].alone:
            while ready and len(items) < size and not ready[0].alone:
                items.append(ready.popleft())
        return items


class Unit(Generic[T]):
    """Messages of one line under way together."""

    __slots__ = ("has_place", "items", "keys", "line")

    def __init__(self, line: Line[T], items: list[T]) -> None:
        self.line = line
        self.items = items
        self.keys: set[Hashable] = {item.key for item in items if item.key is not None}
        self.has_place = True


class _Lane(Generic[T]):
    """Messages of one key. Those that may go on stand in one line; the others wait here."""

    __slots__ = ("line", "moving", "waiting")

    def __init__(self, line: Line[T]) -> None:
        self.line = line
        self.moving = False
        self.waiting: deque[tuple[Line[T], T]] = deque()


class Lines(Generic[T]):
    """All lines of a consumer; they share ``concurrency`` places, and take turns.

    The promise for a key: its messages are in units one after another, in the order they came; several may be in one
    unit. What is put back comes before all that came later.
    """

    def __init__(self, concurrency: int) -> None:
        self.under_way = 0
        self._over = False
        self._concurrency = concurrency
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._turns: deque[Line[T]] = deque()

    def add(self, line: Line[T]) -> None:
        """A line more."""
        self._turns.append(line)

    def put(self, line: Line[T], item: T) -> None:
        """A message has come."""
        if item.key is not None:
            lane = self._lanes.get(item.key)
            if lane is None:
                self._lanes[item.key] = _Lane(line)
            elif lane.moving or lane.waiting or lane.line is not line:
                lane.waiting.append((line, item))
                return
        line.ready.append(item)

    def next(self, now: float) -> Unit[T] | None:
        """The unit to begin now, if there is a place for it."""
        if self._over or self.under_way >= self._concurrency:
            return None
        for _ in range(len(self._turns)):
            line = self._turns[0]
            self._turns.rotate(-1)
            if line.may_begin(now):
                return self._begin(line)
        return None

    def due(self) -> float | None:
        """When to ask again although nothing has happened."""
        if self._over or self.under_way >= self._concurrency:
            return None
        return min((line.due for line in self._turns if line.due is not None), default=None)

    def vacate(self, unit: Unit[T]) -> None:
        """The unit only waits from now on: its place is free for others. Its keys stay its own."""
        if unit.has_place:
            unit.has_place = False
            unit.line.running -= 1
            self.under_way -= 1

    def end(self, unit: Unit[T], back: Iterable[T] = ()) -> None:
        """The unit is over; ``back`` are those of its messages that have to be handled again, in their order."""
        self.vacate(unit)
        for item in reversed(list(back)):
            if item.key is None:
                unit.line.ready.appendleft(item)
            else:
                self._lanes[item.key].waiting.appendleft((unit.line, item))
        for key in unit.keys:
            self._release(key)

    def clear(self) -> list[T]:
        """Forget all that has not begun, and tell what it was. Nothing begins any more."""
        self._over = True
        forgotten = [item for line in self._turns for item in line.ready]
        for line in self._turns:
            line.ready.clear()
        for lane in self._lanes.values():
            forgotten += (item for _, item in lane.waiting)
            lane.waiting.clear()
        return forgotten

    def _begin(self, line: Line[T]) -> Unit[T]:
        unit = Unit(line, line.take())
        self.under_way += 1
        line.running += 1
        if unit.keys:
            self._hold_back(line, unit.keys)
        return unit

    def _hold_back(self, line: Line[T], keys: set[Hashable]) -> None:
        """Take the later messages of these keys out of the line: what is ready is never of a key under way."""
        for key in keys:
            self._lanes[key].moving = True
        for item in reversed([item for item in line.ready if item.key in keys]):
            assert item.key is not None
            self._lanes[item.key].waiting.appendleft((line, item))
        line.ready = deque(item for item in line.ready if item.key not in keys)

    def _release(self, key: Hashable) -> None:
        lane = self._lanes[key]
        lane.moving = False
        if not lane.waiting:
            del self._lanes[key]
            return
        line = lane.line = lane.waiting[0][0]
        free: list[T] = []
        while lane.waiting and lane.waiting[0][0] is line:
            free.append(lane.waiting.popleft()[1])
        line.ready.extendleft(reversed(free))
