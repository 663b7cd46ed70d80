"""What may be handled next: a line of messages for each handler, and lanes that keep those of one key in order.

Pure bookkeeping, without tasks or clocks; ``relmsg.inbox.dispatcher`` runs what comes out of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from heapq import heappop, heappush
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
    """The messages that wait for one handler; they go on in the order they came, as far as their lanes let them.

    Messages without a key stand in ``_free``; the first message of each lane that may go on stands in ``_heads``. It is
    left there when the lane moves, and passed over later: taking it out of the middle would cost a walk.
    """

    __slots__ = ("_free", "_heads", "due", "pace", "ready", "running")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.ready = 0
        """How many messages may go on."""
        self.running = 0
        self.due: float | None = None
        self._free: deque[tuple[int, T]] = deque()
        self._heads: list[tuple[int, _Lane[T]]] = []

    def may_begin(self, now: float) -> bool:
        """Whether a unit should begin now.

        Nothing waits where nothing is under way. Otherwise a group that is not full waits until one that runs has ended
        (while one commits, the next fills), and not longer than 25 ms.
        """
        if not self.ready:
            return False
        if self.running == 0 or self.ready >= self.pace.size:
            return True
        first = self._first()
        if first is not None and first.alone:
            return True
        if self.due is None:
            self.due = now + LINGER_SECONDS
        return now >= self.due

    def take(self) -> list[tuple[int, T]]:
        """The next unit, each message with its number: a group, or one message alone."""
        self.due = None
        if not self._heads:
            return self._take_free()
        size, items = self.pace.size, [self._pop()]
        if not items[0][1].alone:
            while len(items) < size and (first := self._first()) is not None and not first.alone:
                items.append(self._pop())
        return items

    def _take_free(self) -> list[tuple[int, T]]:
        """The next unit where no message with a key may go on."""
        size, free = self.pace.size, self._free
        items = [free.popleft()]
        if not items[0][1].alone:
            while free and len(items) < size and not free[0][1].alone:
                items.append(free.popleft())
        self.ready -= len(items)
        return items

    def add_free(self, number: int, item: T) -> None:
        """A message without a key has come."""
        self._free.append((number, item))
        self.ready += 1

    def put_back(self, number: int, item: T) -> None:
        """A message without a key has come back; called with the last one first."""
        self._free.appendleft((number, item))
        self.ready += 1

    def add_lane(self, lane: _Lane[T]) -> None:
        """A lane whose first messages are for this line may go on."""
        heappush(self._heads, (lane.runs[0].items[0][0], lane))
        self.ready += len(lane.runs[0].items)

    def clear(self) -> list[tuple[int, T]]:
        """Forget all messages without a key, and tell what they were."""
        free = list(self._free)
        self._free.clear()
        self._heads.clear()
        self.ready = 0
        return free

    def _first(self) -> T | None:
        """The message that came first of those that may go on."""
        heads, free = self._heads, self._free
        while heads:
            number, lane = heads[0]
            if lane.starts_with(number, self):
                if free and free[0][0] < number:
                    break
                return lane.runs[0].items[0][1]
            heappop(heads)
        return free[0][1] if free else None

    def _pop(self) -> tuple[int, T]:
        """Take the message of ``_first``, which there must be."""
        self._first()
        self.ready -= 1
        heads, free = self._heads, self._free
        if not heads or (free and free[0][0] < heads[0][0]):
            return free.popleft()
        lane = heappop(heads)[1]
        run = lane.runs[0]
        taken = run.items.popleft()
        if run.items:
            heappush(heads, (run.items[0][0], lane))
        else:
            lane.runs.popleft()
        return taken


class Unit(Generic[T]):
    """Messages of one line under way together."""

    __slots__ = ("has_place", "items", "keys", "line", "numbered")

    def __init__(self, line: Line[T], numbered: list[tuple[int, T]]) -> None:
        self.line = line
        self.numbered = numbered
        self.items = [item for _, item in numbered]
        self.keys: set[Hashable] = {item.key for item in self.items}
        self.keys.discard(None)
        self.has_place = True


class _Run(Generic[T]):
    """Messages of a lane that follow each other and are for the same line."""

    __slots__ = ("items", "line")

    def __init__(self, line: Line[T]) -> None:
        self.line = line
        self.items: deque[tuple[int, T]] = deque()


class _Lane(Generic[T]):
    """The messages of one key that have not begun, in the order they came."""

    __slots__ = ("moving", "runs")

    def __init__(self) -> None:
        self.moving = False
        """Whether one of its messages is under way: then none of the others may go on."""
        self.runs: deque[_Run[T]] = deque()

    def __lt__(self, _: object) -> bool:
        return False  # asked where one lane stands twice in a heap under one number: either is as good

    def starts_with(self, number: int, line: Line[T]) -> bool:
        """Whether this message may go on from this line."""
        if self.moving or not self.runs or self.runs[0].line is not line:
            return False
        return self.runs[0].items[0][0] == number

    def append(self, line: Line[T], number: int, item: T) -> None:
        """A message has come."""
        if not self.runs or self.runs[-1].line is not line:
            self.runs.append(_Run(line))
        self.runs[-1].items.append((number, item))

    def append_left(self, line: Line[T], number: int, item: T) -> None:
        """A message has come back; called with the last one first."""
        if not self.runs or self.runs[0].line is not line:
            self.runs.appendleft(_Run(line))
        self.runs[0].items.appendleft((number, item))


class Lines(Generic[T]):
    """All lines of a consumer; they share ``concurrency`` places, and take turns.

    The promise for a key: its messages are in units one after another, in the order they came; several may be in one
    unit. What is put back comes before all that came later. Each call costs O(log n) a message that it moves, however
    many wait.
    """

    def __init__(self, concurrency: int) -> None:
        self.under_way = 0
        self.count = 0
        """How many messages have come and have not ended."""
        self._over = False
        self._concurrency = concurrency
        self._number = 0
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._turns: deque[Line[T]] = deque()

    def add(self, line: Line[T]) -> None:
        """A line more."""
        self._turns.append(line)

    def put(self, line: Line[T], item: T) -> None:
        """A message has come."""
        number = self._number = self._number + 1
        self.count += 1
        key = item.key
        if key is None:
            line.add_free(number, item)
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.append(line, number, item)
        if lane.moving:
            return
        if len(lane.runs) > 1:  # it waits for those of another line
            return
        if len(lane.runs[0].items) == 1:
            line.add_lane(lane)
        else:
            line.ready += 1

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
        self.count -= len(unit.items)
        back = list(back)
        numbers = {id(item): number for number, item in unit.numbered} if back else {}
        for item in reversed(back):
            self.count += 1
            number = numbers[id(item)]
            key = item.key
            if key is None:
                unit.line.put_back(number, item)
            else:
                self._lanes[key].append_left(unit.line, number, item)
        for key in unit.keys:
            self._release(key)

    def clear(self) -> list[T]:
        """Forget all that has not begun, and tell what it was. Nothing begins any more."""
        self._over = True
        forgotten = [each for line in self._turns for each in line.clear()]
        for lane in self._lanes.values():
            forgotten += (each for run in lane.runs for each in run.items)
            lane.runs.clear()
        self.count -= len(forgotten)
        return [item for _, item in sorted(forgotten, key=lambda each: each[0])]

    def _begin(self, line: Line[T]) -> Unit[T]:
        unit = Unit(line, line.take())
        self.under_way += 1
        line.running += 1
        for key in unit.keys:
            lane = self._lanes[key]
            lane.moving = True
            if lane.runs and lane.runs[0].line is line:
                line.ready -= len(lane.runs[0].items)
        return unit

    def _release(self, key: Hashable) -> None:
        lane = self._lanes[key]
        lane.moving = False
        if lane.runs:
            lane.runs[0].line.add_lane(lane)
        else:
            del self._lanes[key]
