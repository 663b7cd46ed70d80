"""Lines against a model: whatever the order of events, keys keep their order and nothing is lost, doubled or stuck."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relmsg.inbox.call import Took
from relmsg.inbox.lines import LINGER_SECONDS, Line, Lines, Unit
from relmsg.inbox.pace import Pace

CONCURRENCY = 3


@dataclass(eq=False)
class Item:
    number: int
    line: int
    key: str | None
    alone: bool


class Dispatching(RuleBasedStateMachine):
    """Messages come, units begin, end well, fail, are cut short, or only wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lines: Lines[Item] = Lines(CONCURRENCY)
        self.line = [Line[Item](Pace(8)) for _ in range(2)]
        for line in self.line:
            self.lines.add(line)
        self.running: list[Unit[Item]] = []
        self.waiting: dict[int, Item] = {}
        self.done: list[Item] = []
        self.count = 0

    @rule(
        line=st.integers(0, 1), key=st.sampled_from([None, None, "a", "b"]), alone=st.sampled_from([False] * 4 + [True])
    )
    def come(self, line: int, key: str | None, alone: bool) -> None:
        item = Item(self.count, line, key, alone)
        self.count += 1
        self.waiting[item.number] = item
        self.lines.put(self.line[line], item)

    @rule(wait=st.sampled_from([0.0, LINGER_SECONDS * 1.01]))
    def begin(self, wait: float) -> None:
        self.now += wait
        while (unit := self.lines.next(self.now)) is not None:
            self._is_right(unit)
            self.running.append(unit)
        assert sum(unit.has_place for unit in self.running) <= CONCURRENCY

    def _is_right(self, unit: Unit[Item]) -> None:
        assert unit.items
        assert len({item.line for item in unit.items}) == 1
        assert len(unit.items) == 1 or not any(item.alone for item in unit.items)
        held = {item.key for other in self.running for item in other.items if item.key is not None}
        for item in unit.items:
            assert self.waiting.pop(item.number) is item
            assert item.key not in held
            if item.key is not None:
                assert all(later.number > item.number for later in self.waiting.values() if later.key == item.key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        unit = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self._end(unit, back=[])

    @precondition(lambda self: any(len(unit.items) > 1 for unit in self.running))
    @rule(data=st.data(), failed=st.booleans())
    def come_back(self, data: st.DataObject, failed: bool) -> None:
        """All of it, alone, where the group failed; the last ones where it was closed early."""
        unit = data.draw(st.sampled_from([unit for unit in self.running if len(unit.items) > 1]))
        self.running.remove(unit)
        if failed:
            unit.line.pace.failed(len(unit.items))
            for item in unit.items:
                item.alone = True
        self._end(unit, unit.items if failed else unit.items[len(unit.items) // 2 :])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def only_wait(self, data: st.DataObject) -> None:
        self.lines.vacate(data.draw(st.sampled_from(self.running)))

    def _end(self, unit: Unit[Item], back: list[Item]) -> None:
        done = [item for item in unit.items if item not in back]
        if done:
            unit.line.pace.went_well(len(done), Took(0.0001 * len(done), 0.002))
        self.done += done
        for item in back:
            self.waiting[item.number] = item
        self.lines.end(unit, back)

    @invariant()
    def keys_are_in_order(self) -> None:
        orders: dict[str, list[int]] = defaultdict(list)
        for item in self.done:
            if item.key is not None:
                orders[item.key].append(item.number)
        assert all(order == sorted(order) for order in orders.values())

    @invariant()
    def messages_are_counted(self) -> None:
        assert self.lines.count == len(self.waiting) + sum(len(unit.items) for unit in self.running)

    @invariant()
    def places_are_counted(self) -> None:
        assert self.lines.under_way == sum(unit.has_place for unit in self.running)
        assert sum(line.running for line in self.line) == self.lines.under_way

    def teardown(self) -> None:
        """In the end everything is done, once: nothing is stuck behind anything."""
        for _ in range(self.count * 2 + 1):
            self.begin(LINGER_SECONDS * 1.01)
            for unit in self.running:
                self._end(unit, back=[])
            self.running.clear()
        assert sorted(item.number for item in self.done) == list(range(self.count))
        assert self.lines.clear() == []


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def put(lines: Lines[Item], line: Line[Item], *keys: str | None) -> list[Item]:
    items = [Item(number, 0, key, alone=False) for number, key in enumerate(keys)]
    for item in items:
        lines.put(line, item)
    return items


def line_of(size: int) -> tuple[Lines[Item], Line[Item]]:
    lines, line = Lines[Item](CONCURRENCY), Line[Item](Pace(size, timed=False))
    while line.pace.size < size:
        line.pace.went_well(line.pace.size, None)
    lines.add(line)
    return lines, line


def test_a_message_never_waits_where_nothing_is_under_way() -> None:
    """A single message begins at once; the next ones wait for it to end, and then go together."""
    lines, line = line_of(4)
    put(lines, line, None)
    first = lines.next(0.0)
    assert first is not None
    assert len(first.items) == 1
    put(lines, line, None, None)
    assert lines.next(0.0) is None
    lines.end(first)
    second = lines.next(0.0)
    assert second is not None
    assert len(second.items) == 2


def test_a_full_group_begins_beside_another_and_a_partial_one_after_a_while() -> None:
    """A group that is full waits for nobody; one that is not, at most for the time of LINGER_SECONDS."""
    lines, line = line_of(4)
    put(lines, line, *[None] * 9)
    assert [len(unit.items) for unit in (lines.next(0.0), lines.next(0.0)) if unit] == [4, 4]
    assert lines.next(0.0) is None
    assert lines.due() == LINGER_SECONDS
    last = lines.next(LINGER_SECONDS)
    assert last is not None
    assert len(last.items) == 1


def test_messages_of_one_key_may_share_a_group_and_never_run_in_two() -> None:
    """In order within the group; what did not fit waits for its end, and comes before what arrived meanwhile."""
    lines, line = line_of(2)
    items = put(lines, line, "a", "a", "a", "b", "b")
    first, second = lines.next(0.0), lines.next(0.0)
    assert first is not None
    assert second is not None
    assert (first.items, second.items) == (items[:2], items[3:])
    later = Item(9, 0, "a", alone=False)
    lines.put(line, later)
    lines.end(first)
    third = lines.next(0.0)
    assert third is not None
    assert third.items == [items[2], later]


def test_one_key_keeps_its_order_over_two_handlers() -> None:
    """The second type of a key waits for the first, although each has a line of its own."""
    lines, one = line_of(4)
    other = Line[Item](Pace(4))
    lines.add(other)
    (first,) = put(lines, one, "a")
    second, third = Item(1, 1, "a", alone=False), Item(2, 0, "a", alone=False)
    lines.put(other, second)
    lines.put(one, third)
    seen = []
    while (unit := lines.next(0.0)) is not None:
        assert lines.next(0.0) is None
        seen += unit.items
        lines.end(unit)
    assert seen == [first, second, third]


def test_nothing_begins_after_the_lines_are_cleared() -> None:
    """clear tells what had not begun; what comes or comes back later is told by the next clear."""
    lines, line = line_of(2)
    items = put(lines, line, None, "a", None)
    unit = lines.next(0.0)
    assert unit is not None
    assert lines.clear() == items[2:]
    lines.end(unit, back=unit.items)
    assert lines.next(1.0) is None
    assert set(lines.clear()) == set(unit.items)


class Counted(Item):
    """Counts how often its key is asked for."""

    asked = 0

    def __getattribute__(self, name: str) -> object:
        if name == "key":
            Counted.asked += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("keys", [1, 50, 20_000], ids=["one key", "a few keys", "a key each"])
def test_what_a_message_costs_does_not_grow_with_those_that_wait(keys: int) -> None:
    """With 20,000 messages waiting each one is looked at a few times, whether they share a key or not."""
    count = 20_000
    lines, line = line_of(4)
    Counted.asked = 0
    items = [Counted(number, 0, str(number % keys), alone=False) for number in range(count)]
    for item in items:
        lines.put(line, item)
    handled: list[Item] = []
    while (unit := lines.next(0.0)) is not None:
        handled += unit.items
        lines.end(unit)
    assert len(handled) == count
    assert Counted.asked <= 6 * count


def test_a_hot_key_does_not_keep_others_waiting() -> None:
    """Messages go on in the order they came: those of a key that was under way do not go before older ones."""
    lines, line = line_of(1)
    hot, other, later = put(lines, line, "hot", "other", "hot")
    first = lines.next(0.0)
    assert first is not None
    assert first.items == [hot]
    lines.end(first)
    second = lines.next(0.0)
    assert second is not None
    assert second.items == [other]
    lines.end(second)
    third = lines.next(0.0)
    assert third is not None
    assert third.items == [later]
