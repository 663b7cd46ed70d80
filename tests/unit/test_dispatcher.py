"""The dispatcher: what begins when, and that nothing waits for an event that never comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from relmsg.inbox.dispatcher import Dispatcher
from relmsg.inbox.lines import Line
from relmsg.inbox.outcome import TaskCancelled
from relmsg.inbox.pace import Pace
from relmsg.testing import eventually


@dataclass(eq=False)
class Item:
    name: str
    key: str | None = None
    alone: bool = False


class Work:
    """Notes what began, and holds each unit until it is let go."""

    def __init__(self, concurrency: int) -> None:
        self.begun: list[list[str]] = []
        self.faults: list[BaseException] = []
        self.unfinished: list[str] = []
        self.back: list[str] = []
        self.waits: dict[str, Callable[[], None]] = {}
        self._held: dict[str, asyncio.Future[None]] = {}
        self.line = Line[Item](Pace(8, timed=False))
        self.dispatcher: Dispatcher[Item] = Dispatcher(
            concurrency,
            one=self._one,
            many=self._many,
            fault=self.faults.append,
            unfinished=lambda items: self.unfinished.extend(item.name for item in items),
        )
        self.dispatcher.add(self.line)

    async def put(self, *items: str | Item) -> None:
        for item in items:
            self.dispatcher.put(self.line, item if isinstance(item, Item) else Item(item))
        await turns()

    async def let_go(self, name: str, error: BaseException | None = None) -> None:
        held = self._held.pop(name)
        if error is None:
            held.set_result(None)
        else:
            held.set_exception(error)
        await turns()

    def grow(self) -> None:
        """Groups are of eight from now on."""
        while self.line.pace.size < 8:
            self.line.pace.went_well(self.line.pace.size, None)

    async def end(self) -> None:
        """Begin nothing more, and leave nothing running: the loop of the test is closed after it."""
        self.dispatcher.drop_waiting()
        for task in self.dispatcher.tasks:
            task.cancel()
        await asyncio.gather(*self.dispatcher.tasks, return_exceptions=True)

    async def _one(self, item: Item, line: Line[Item], waits: Callable[[], None]) -> None:
        self.waits[item.name] = waits
        await self._many([item], line)

    async def _many(self, items: list[Item], _: Line[Item]) -> list[Item]:
        self.begun.append([item.name for item in items])
        held = self._held[items[0].name] = asyncio.get_running_loop().create_future()
        await held
        back = [item for item in items if item.name in self.back]
        self.back.clear()
        return back


async def turns() -> None:
    """Let everything run that does not wait."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def working() -> AsyncIterator[Callable[[int], Work]]:
    """Makes a ``Work`` with so many places."""
    made: list[Work] = []

    def make(concurrency: int) -> Work:
        made.append(Work(concurrency))
        return made[-1]

    yield make
    for work in made:
        await work.end()


async def test_what_comes_in_one_turn_is_one_group_and_one_task(working: Callable[[int], Work]) -> None:
    """Full groups begin beside each other, no more than there are places, the next where one ends."""
    work = working(2)
    work.grow()
    await work.put(*map(str, range(20)))
    assert [len(each) for each in work.begun] == [8, 8]
    assert len(work.dispatcher.tasks) == 2
    await work.let_go("0")
    await work.let_go("8")
    assert work.begun[2:] == [["16", "17", "18", "19"]]
    await work.let_go("16")
    assert not work.dispatcher.tasks


async def test_a_partial_group_does_not_wait_for_long(working: Callable[[int], Work]) -> None:
    """It begins beside a group that goes on and on, although nothing comes and nothing ends."""
    work = working(2)
    work.grow()
    await work.put("a")
    await work.put("b", "c")

    def begun() -> None:
        assert work.begun == [["a"], ["b", "c"]]

    await eventually(begun)


async def test_a_message_that_only_waits_gives_its_place_to_others(working: Callable[[int], Work]) -> None:
    """Between two attempts a message takes no place; those of its key wait for it all the same."""
    work = working(1)
    await work.put(Item("a1", "a"), Item("a2", "a"), Item("b1", "b"))
    assert work.begun == [["a1"]]
    work.waits["a1"]()
    await turns()
    assert work.begun == [["a1"], ["b1"]]
    await work.let_go("b1")
    assert work.begun == [["a1"], ["b1"]]
    await work.let_go("a1")
    assert work.begun == [["a1"], ["b1"], ["a2"]]


async def test_what_comes_back_is_handled_before_what_came_later(working: Callable[[int], Work]) -> None:
    """A group that gives messages back leaves them at the head of their line."""
    work = working(1)
    work.grow()
    await work.put("a", "b", "c")
    await work.put("d")
    work.back = ["b", "c"]
    await work.let_go("a")
    assert work.begun == [["a", "b", "c"], ["b", "c", "d"]]


@pytest.mark.parametrize("alone", [True, False], ids=["one", "many"])
async def test_a_fault_of_ours_is_told(working: Callable[[int], Work], alone: bool) -> None:
    """An exception that comes out of the handling is never swallowed, and its place is free again."""
    work = working(1)
    work.grow()
    await work.put(Item("a", alone=alone), "b", "c")
    fault = RuntimeError("ours")
    await work.let_go("a", fault)
    assert work.faults == [fault]
    assert len(work.begun) == (2 if alone else 1)
    await work.put("d")
    assert len(work.begun) == 2


class Panic(BaseException):
    """As a Rust extension raises it."""


@pytest.mark.parametrize("kind", [Panic, GeneratorExit, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("alone", [True, False], ids=["one", "many"])
async def test_whatever_ends_without_an_outcome_is_told(
    working: Callable[[int], Work], alone: bool, kind: type[BaseException]
) -> None:
    """Whatever is raised, by a message alone or in a group, its messages are told and the next ones begin."""
    work = working(1)
    work.grow()
    await work.put(Item("a", alone=alone), "b", "c")
    under_way = ["a"] if alone else ["a", "b", "c"]
    await work.let_go("a", kind())
    assert work.unfinished == under_way
    assert [type(error) for error in work.faults] == [TaskCancelled if kind is asyncio.CancelledError else kind]
    await work.put("d")
    assert len(work.begun) == 2


async def test_a_task_that_is_cancelled_before_it_begins_gives_its_place_back(working: Callable[[int], Work]) -> None:
    """Somebody cancels all tasks of the loop in the turn in which a unit was to begin: it is told, others go on."""
    work = working(1)
    work.dispatcher.put(work.line, Item("a"))
    await asyncio.sleep(0)
    for task in work.dispatcher.tasks:
        task.cancel()
    await turns()
    assert work.begun == []
    assert work.unfinished == ["a"]
    await work.put("b")
    assert work.begun == [["b"]]


async def test_what_is_cancelled_by_a_drain_is_no_fault(working: Callable[[int], Work]) -> None:
    """After drop_waiting a cancellation is the consumer's own."""
    work = working(1)
    await work.put("a")
    work.dispatcher.drop_waiting()
    for task in work.dispatcher.tasks:
        task.cancel()
    await turns()
    assert (work.faults, work.unfinished, work.dispatcher.count) == ([], [], 0)


async def test_nothing_begins_after_a_drop(working: Callable[[int], Work]) -> None:
    """drop_waiting tells what had not begun; what runs may end, and what it gives back is told by the next call."""
    work = working(1)
    work.grow()
    await work.put("a", "b")
    await work.put("c")
    assert [item.name for item in work.dispatcher.drop_waiting()] == ["c"]
    work.back = ["b"]
    await work.let_go("a")
    assert work.begun == [["a", "b"]]
    assert [item.name for item in work.dispatcher.drop_waiting()] == ["b"]
