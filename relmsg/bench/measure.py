"""Measuring: what one row found, a stopwatch of time and CPU, and waiting for something that counts up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, Self

from relmsg.bench.limits import Verdict, Work
from relmsg.errors import RelmsgError

LOOK_SECONDS = 0.02
STALL_SECONDS = 30.0
LEAVE_SECONDS = 15.0


class Progress(Protocol):
    """Who is told how far it is."""

    def begin(self, what: str, total: int) -> None:
        """A row of so many steps begins."""

    def advance(self, steps: int) -> None:
        """So many steps more are done."""

    def end(self) -> None:
        """The row is done, or given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One row of the result. Times are seconds; ``work`` is None where nothing but waiting was measured."""

    part: str
    what: str
    unit: str
    rate: float
    work: Work | None = None
    verdict: Verdict | None = None
    median: float | None = None
    late: float | None = None
    added: float | None = None
    """For the outbox: the time of the transaction as a multiple of the same one without the message."""

    @classmethod
    def of(cls, part: str, what: str, work: Work, verdict: Verdict, unit: str = "messages") -> Self:
        """The row of work that was done."""
        return cls(part=part, what=what, unit=unit, rate=work.rate, work=work, verdict=verdict)


class Stopwatch:
    """Time and this process's CPU, all its threads, since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    @property
    def seconds(self) -> float:
        """Time until now."""
        return time.perf_counter() - self._began

    @property
    def cpu_seconds(self) -> float:
        """CPU until now."""
        return time.process_time() - self._cpu


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@asynccontextmanager
async def running(run: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> AsyncIterator[asyncio.Future[None]]:
    """A relay or a consumer that runs meanwhile. In the end it is told to stop, and cancelled if it takes long."""
    stop = asyncio.Event()
    task = asyncio.create_task(run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=LEAVE_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def first(event: asyncio.Event, task: asyncio.Future[None]) -> None:
    """Wait until the event is set, or the task has failed, which is raised."""
    waiting: asyncio.Future[object] = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if task.done():
        task.result()


async def counted(
    count: Callable[[], int],
    total: int,
    task: asyncio.Future[None],
    progress: Progress,
    trouble: Callable[[], str | None],
) -> None:
    """Wait until ``count()`` has reached ``total``.

    :raises RelmsgError: nothing has moved for 30 s. What the task failed with is raised as it is.
    """
    known, moved_at = 0, time.perf_counter()
    while known < total:
        if task.done():
            task.result()
            raise RelmsgError("what was to be measured has ended too early")
        await asyncio.sleep(LOOK_SECONDS)
        now = min(count(), total)
        if now > known:
            progress.advance(now - known)
            known, moved_at = now, time.perf_counter()
        elif time.perf_counter() - moved_at > STALL_SECONDS:
            raise RelmsgError(f"nothing has moved for {STALL_SECONDS:.0f} s: {trouble() or 'no reason is known'}")
