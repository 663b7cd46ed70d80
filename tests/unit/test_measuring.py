"""A relay's measuring: how old what it tells may be."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from relmsg.outage import Outage
from relmsg.outbox.duties import COUNT_MOST_SECONDS, OLDEST_MOST_SECONDS, Duties
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.progress import Progress
from relmsg.runtime.rest import rest_after
from tests.support.clocks import SteppedClock


class Store:
    """An outbox with one message, whose statements take as long as the test says."""

    def __init__(self, clock: SteppedClock, seconds: list[float]) -> None:
        self.waiting = 1
        self._clock = clock
        self._seconds = seconds
        self.asked_at: list[float] = []
        self.counted_at: list[float] = []

    def _take(self) -> None:
        self._clock.now += self._seconds.pop(0) if self._seconds else 0.001

    async def oldest(self, _slots: object) -> float | None:
        self.asked_at.append(self._clock.now)
        self._take()
        return 1.0 if self.waiting else None

    async def count(self, _slots: object) -> tuple[int, int]:
        self.counted_at.append(self._clock.now)
        self._take()
        return self.waiting, 0


class Connection:
    """A connection in good order."""

    blocked_seconds = 0.0
    reconnects = 0


class Slots:
    """All of them are ours."""

    owned = frozenset(range(64))


async def measured(store: Store, clock: SteppedClock, until: float, sent_at: float) -> Progress:
    """What is known after measuring so long, where the message is sent at this time."""
    progress = Progress(clock.now)
    anything: Any = None
    given: dict[str, Any] = {"slots": Slots(), "store": store, "publishing": Connection(), "clock": clock}
    duties = Duties(
        **given,
        reader=anything,
        pending=anything,
        metrics=RelayMetrics(),
        progress=progress,
        database=Outage("PostgreSQL"),
        wake=lambda: None,
    )
    task = asyncio.create_task(duties.measure())
    while clock.now < until:
        if clock.now >= sent_at:
            store.waiting = 0
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return progress


async def test_an_outage_while_it_is_measured_is_over_for_the_probes_seconds_later() -> None:
    """The database stands still for half a minute while the oldest message is asked for: that nothing waits any more is
    known ten seconds later, and not after a hundred times half a minute."""
    clock = SteppedClock()
    store = Store(clock, [0.001, 0.001, 30.0])
    progress = await measured(store, clock, until=1080.0, sent_at=1033.0)
    assert progress.backlog == 0
    assert max(later - earlier for earlier, later in zip(store.asked_at, store.asked_at[1:], strict=False)) < (
        30.0 + OLDEST_MOST_SECONDS + 3.0
    )


async def test_a_count_is_never_older_than_ten_minutes() -> None:
    """A count that a lock has held up for half a minute is made again within ten minutes."""
    clock = SteppedClock()
    store = Store(clock, [0.001, 30.0])
    await measured(store, clock, until=1700.0, sent_at=10_000.0)
    assert store.counted_at[1] - store.counted_at[0] <= 30.0 + COUNT_MOST_SECONDS + 3.0


def test_work_rests_for_its_share_and_no_longer_than_told() -> None:
    """A hundredth of the time means ninety-nine times as long; what an outage held up has the longest rest."""
    assert rest_after(0.1, share=0.01, most=600.0) == 0.1 * 99
    assert rest_after(30.0, share=0.01, most=600.0) == 600.0
