"""Side by side or one after another: lanes keep messages of one ordering key in line, slots bound how many run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from relmsg.inbox.rest import Rest

T = TypeVar("T")


class Slots:
    """How many handlers run at a time; one of them can ask to run alone."""

    def __init__(self, count: int, rest: Rest | None = None) -> None:
        self._count = count
        self._rest = rest or Rest()
        self._free = asyncio.Semaphore(count)  # first come, first served: a loner waiting for all is not starved
        self._loner = asyncio.Lock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Run beside others."""
        await self._take(self._free.acquire)
        try:
            yield
        finally:
            self._free.release()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Run while nobody else does."""
        await self._take(self._loner.acquire)
        taken = 0
        try:
            while taken < self._count:
                await self._take(self._free.acquire)
                taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()
            self._loner.release()

    async def _take(self, acquire: Callable[[], Awaitable[bool]]) -> None:
        with self._rest():
            await acquire()


class Lanes(Generic[T]):
    """Runs ``work`` for each item: items of one key in the order they came, one at a time; others at once.

    An item without a key (None) has a lane of its own. A lane waits while its head waits. How much is under way is
    bound by what is put in, the prefetch of the queues. ``work`` handles its own errors.
    """

    def __init__(self, work: Callable[[T], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._waiting: dict[Hashable, deque[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # a task nobody refers to may be collected (reliability R1)

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """The lanes that are moving, one task each."""
        return frozenset(self._tasks)

    def put(self, key: Hashable | None, item: T) -> None:
        """Take an item; returns at once."""
        if key is None:
            self._start(self._work(item))
        elif (lane := self._waiting.get(key)) is not None:
            lane.append(item)
        else:
            self._waiting[key] = deque([item])
            self._start(self._run(key))

    def drop_waiting(self) -> None:
        """Forget all that has not begun."""
        for lane in self._waiting.values():
            lane.clear()

    async def _run(self, key: Hashable) -> None:
        lane = self._waiting[key]
        try:
            while lane:
                await self._work(lane.popleft())
        finally:
            del self._waiting[key]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
