"""The gate: when all pause, who tries, and when all go on."""

import asyncio

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
    """Work whose delivery is gone ends as None, and the gate stays as it is."""
    gate, service = Gate("database", clock=Clock()), Service(away=99)
    assert await gate.until_settled(service, wanted=lambda: service.calls < 3) is None
    assert service.calls == 3
    assert gate.trouble == "database: away"
