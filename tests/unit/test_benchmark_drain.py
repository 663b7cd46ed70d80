"""How the benchmark suite watches a relay."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.benchmarks.bench import CpuNow
from tests.benchmarks.drain import drained
from tests.benchmarks.model import CheckFailed

RELAY = SimpleNamespace(pid=1, ended=False, said=lambda: "")


class Watched:
    """A queue that is found to hold these numbers of messages, look by look; CPU is a second more at each look."""

    def __init__(self, *depths: int) -> None:
        self._depths: Iterator[int] = iter(depths)
        self._last = 0
        self._looks = 0.0

    async def depth(self, _: str) -> int:
        self._last = next(self._depths, self._last)
        return self._last

    def cpu(self, _: object) -> CpuNow:
        self._looks += 1.0
        return CpuNow(at=self._looks, client=self._looks, broker=0.0, postgres=0.0, suite=0.0, machine=self._looks)


async def _none_waits() -> bool:
    return False


async def test_only_messages_between_the_first_look_and_the_last_count() -> None:
    """400 were there when the first was seen: 600 are measured, with the CPU of that time."""
    sample = await drained(Watched(0, 400, 700, 1000), [RELAY], "queue", 1000, _none_waits)
    assert sample.messages == 600
    assert sample.cpu.client == pytest.approx(1e6 / 600)


async def test_a_run_that_was_seen_only_once_is_none() -> None:
    """All at once: there is no time to divide by."""
    with pytest.raises(CheckFailed, match="too few to measure"):
        await drained(Watched(0, 1000), [RELAY], "queue", 1000, _none_waits)


async def test_a_relay_that_ends_fails_the_run() -> None:
    """With what it said last."""
    ended = SimpleNamespace(pid=1, ended=True, said=lambda: "PostgreSQL refuses the password")
    with pytest.raises(CheckFailed, match="refuses the password"):
        await drained(Watched(0, 0), [ended], "queue", 1000, _none_waits)


async def test_where_we_may_give_up_those_that_came_make_the_sample() -> None:
    """500 of 1,000 came, 300 of them while it was measured; where none came the rate is none."""
    some = await drained(Watched(0, 200, 500), [RELAY], "queue", 1000, _none_waits, give_up=0.5)
    none = await drained(Watched(0), [RELAY], "queue", 1000, _none_waits, give_up=0.1)
    assert (some.messages, none.messages, none.figure("rate")) == (300, 0, 0.0)
