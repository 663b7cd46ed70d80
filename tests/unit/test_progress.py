"""Progress: when deliveries that are here are said to stand still."""

import asyncio

from relmsg.inbox.consume.progress import Progress
from relmsg.inbox.gate import Gate
from relmsg.inbox.outcome import Unsettled
from relmsg.inbox.rest import Rest
from relmsg.inbox.slots import Slots
from tests.support.clocks import SteppedClock


def test_nothing_moves_unless_it_is_told() -> None:
    """Time passes until something moves, and from then on again."""
    clock = SteppedClock()
    progress = Progress(clock)
    clock.now += 61
    assert progress.standing_still() == 61
    progress.moved()
    clock.now += 7
    assert progress.standing_still() == 7


async def test_an_attempt_may_take_its_time_and_no_longer() -> None:
    """What runs in a slot is no standstill for as long as it was announced; afterwards all the time counts."""
    clock = SteppedClock()
    slots = Slots(2, Rest(Progress(clock)))
    progress = slots.rest.progress
    async with slots.one(70):
        clock.now += 69
        assert progress.standing_still() == 0
        clock.now += 2
        assert progress.standing_still() == 71
        async with slots.one(None):
            clock.now += 3600
            assert progress.standing_still() == 0
    assert progress.standing_still() == 0
    clock.now += 5
    assert progress.standing_still() == 5


async def test_a_wait_of_known_length_is_no_standstill() -> None:
    """A retry in ten minutes is waited for; a wait for a slot that never comes is a standstill."""
    clock = SteppedClock()
    rest = Rest(Progress(clock))
    long = asyncio.Event()

    class Slow(SteppedClock):
        async def sleep(self, seconds: float) -> None:
            await long.wait()

    waiting = asyncio.create_task(rest.sleep(Slow(), 600))
    await asyncio.sleep(0)
    clock.now += 599
    assert rest.progress.standing_still() == 0
    clock.now += 2
    assert rest.progress.standing_still() == 601
    long.set()
    await waiting


async def test_trials_of_a_service_that_is_away_are_movement() -> None:
    """An outage of hours is no standstill while somebody tries; a trial that never ends is one."""
    clock, hangs = SteppedClock(), asyncio.Event()
    rest = Rest(Progress(clock))
    gate = Gate("database", rest=rest, clock=clock, chance=lambda: 1.0)
    seen: list[float] = []
    all_seen = asyncio.Event()

    async def away() -> Unsettled:
        seen.append(rest.progress.standing_still())
        if len(seen) == 50:
            all_seen.set()
            await hangs.wait()
        return Unsettled(ConnectionRefusedError("away"))

    trying = asyncio.create_task(gate.until_settled(away))
    await asyncio.wait_for(all_seen.wait(), 5)
    assert clock.now > 1300
    assert max(seen) == 0
    clock.now += 121
    assert rest.progress.standing_still() > 60
    trying.cancel()
