"""The gate: when all pause, who tries, and when all go on."""

import asyncio

import pytest

from relmsg.inbox.gate import Gate
from relmsg.inbox.outcome import Unsettled


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Service:
    """Is away for so many calls."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self) -> str | Unsettled:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.away > 0:
            self.away -= 1
            return Unsettled(ConnectionRefusedError("away"))
        return "done"


async def test_an_open_gate_lets_all_through_at_once() -> None:
    """While all is well nobody waits for anybody."""
    gate, service = Gate("database", clock=Clock()), Service(away=0)
    assert await asyncio.gather(*(gate.until_settled(service) for _ in range(5))) == ["done"] * 5
    assert service.most_at_once == 5
    assert gate.paused_seconds == 0


async def test_a_shut_gate_tries_one_at_a_time_with_growing_waits() -> None:
    """After the first trouble only one piece of work is under way, each after a longer wait, until one succeeds."""
    clock, service = Clock(), Service(away=4)
    gate = Gate("database", clock=clock, chance=lambda: 1.0)
    assert await gate.until_settled(service) == "done"
    assert clock.slept == [0.1, 0.2, 0.4, 0.8]
    assert service.most_at_once == 1
    assert gate.is_open
    assert gate.trouble is None
    assert round(gate.paused_seconds, 6) == 1.5


async def test_trouble_met_by_many_counts_once() -> None:
    """Eight workers that meet the same outage make one backoff and not eight."""
    clock, service = Clock(), Service(away=8)
    gate = Gate("database", clock=clock, chance=lambda: 1.0)
    assert await asyncio.gather(*(gate.until_settled(service) for _ in range(8))) == ["done"] * 8
    assert clock.slept[0] == 0.1
    assert len(clock.slept) <= 2


async def test_the_wait_is_capped() -> None:
    """However long the service is away, a trial comes every ten seconds at the latest."""
    clock, service = Clock(), Service(away=30)
    gate = Gate("database", clock=clock, chance=lambda: 1.0)
    await gate.until_settled(service)
    assert max(clock.slept) == 10.0


async def test_what_is_not_wanted_any_more_is_left() -> None:
    """Work whose delivery is gone ends as None; the gate does not stay shut where nobody is left who tries."""
    gate, service = Gate("database", clock=Clock()), Service(away=99)
    assert await gate.until_settled(service, wanted=lambda: service.calls < 3) is None
    assert service.calls == 3
    assert gate.trouble is None
    async with asyncio.timeout(5):
        await gate.opened()


async def test_work_that_is_lost_while_it_fails_shuts_nothing() -> None:
    """A failure of work that nobody wants any more pauses nobody."""
    gate, service = Gate("database", clock=Clock()), Service(away=1)
    assert await gate.until_settled(service, wanted=lambda: service.calls == 0) is None
    assert gate.is_open


class Leaving(asyncio.Event):
    """Work that fails once, and then waits until the test says how its trial ends."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.calls = 0
        self.tries = asyncio.Event()

    async def __call__(self) -> str | Unsettled:
        self.calls += 1
        if self.calls > 1:
            self.tries.set()
            await self.wait()
            if self.error is not None:
                raise self.error
        return Unsettled(ConnectionRefusedError("away"))


@pytest.mark.parametrize("way", ["lost", "cancelled", "fails", "fails badly"])
async def test_whoever_waits_goes_on_when_the_last_one_that_tries_leaves(way: str) -> None:
    """Its delivery is lost, its task is cancelled, it raises: those behind the gate are let through."""
    errors: dict[str, BaseException] = {"fails": RuntimeError("a fault"), "fails badly": GeneratorExit()}
    gate, work = Gate("errors", chance=lambda: 0.0), Leaving(errors.get(way))
    trying = asyncio.create_task(gate.until_settled(work, lambda: not work.is_set() or way != "lost"))
    await asyncio.wait_for(work.tries.wait(), 5)
    waiting = asyncio.create_task(gate.opened())
    await asyncio.sleep(0)
    assert not waiting.done()
    if way == "cancelled":
        trying.cancel()
    work.set()
    await asyncio.wait({trying}, timeout=5)
    await asyncio.wait_for(waiting, 5)
    assert gate.is_open
    if not trying.cancelled():
        assert type(trying.exception()) is type(errors.get(way))


async def test_another_goes_on_trying_when_one_leaves() -> None:
    """While one is left who tries the gate stays shut, and that one opens it by its success."""
    gate, leaving, service = Gate("database", chance=lambda: 0.0), Leaving(), Service(away=2)
    first = asyncio.create_task(gate.until_settled(leaving))
    await asyncio.wait_for(leaving.tries.wait(), 5)
    second = asyncio.create_task(gate.until_settled(service))
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.wait_for(second, 5) == "done"
    assert service.calls == 3
    assert gate.is_open


async def test_the_lost_do_not_wait_their_turn_before_those_that_are_there() -> None:
    """A hundred pieces of work whose deliveries are gone cost the next one no more than one wait."""
    clock, gone = Clock(), asyncio.Event()
    gate, lost, service = Gate("database", clock=clock, chance=lambda: 1.0), Leaving(), Service(away=0)
    first = asyncio.create_task(gate.until_settled(lost, lambda: not gone.is_set()))
    await asyncio.wait_for(lost.tries.wait(), 5)
    others = [asyncio.create_task(gate.until_settled(service, lambda: not gone.is_set())) for _ in range(100)]
    last = asyncio.create_task(gate.until_settled(service))
    await asyncio.sleep(0)
    gone.set()
    lost.set()
    assert await asyncio.wait_for(last, 5) == "done"
    assert await asyncio.gather(first, *others) == [None] * 101
    assert len(clock.slept) <= 2


async def test_a_long_trial_does_not_keep_others_from_trying() -> None:
    """A trial that is a handler without an end is passed after a while: the next one tries beside it."""
    gate, endless, service = Gate("database", chance=lambda: 0.0, hand_on=0.01), Leaving(), Service(away=0)
    trying = asyncio.create_task(gate.until_settled(endless))
    await asyncio.wait_for(endless.tries.wait(), 5)
    assert await asyncio.wait_for(gate.until_settled(service), 5) == "done"
    assert gate.is_open
    trying.cancel()


async def test_the_backoff_goes_on_where_nobody_was_left_to_try() -> None:
    """A gate that opened because all had left has not seen the service work: the next wait is a longer one."""
    clock = Clock()
    gate, service = Gate("database", clock=clock, chance=lambda: 1.0), Service(away=99)
    await gate.until_settled(service, wanted=lambda: service.calls < 4)
    clock.slept.clear()
    await gate.until_settled(service, wanted=lambda: service.calls < 6)
    assert clock.slept[0] > 0.4
