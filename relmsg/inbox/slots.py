"""How many handlers run at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from relmsg.inbox.rest import Rest


class Slots:
    """How many handlers run at a time; one of them can ask to run alone.

    ``rest`` tells whether the process is to stop, and its ``progress`` is told what runs and how long it may.
    """

    def __init__(self, count: int, rest: Rest | None = None) -> None:
        self.rest = rest or Rest()
        self._count = count
        self._free = asyncio.Semaphore(count)  # first come, first served: a loner waiting for all is not starved
        self._loner = asyncio.Lock()

    def one(self, may_take: float | None = None) -> AbstractAsyncContextManager[None]:
        """Run beside others, for so many seconds if all is well; None: nobody can tell."""
        return _One(self, may_take)

    async def take(self) -> None:
        """Wait for a slot, which then has to be given back by ``release``."""
        if self._free.locked() or self.rest.is_over:
            await self._take(self._free.acquire)
        else:
            await self._free.acquire()  # does not wait

    def release(self) -> None:
        """Give a slot back."""
        self._free.release()

    @asynccontextmanager
    async def alone(self, may_take: float | None = None) -> AsyncIterator[None]:
        """Run while nobody else does, for so many seconds if all is well."""
        await self._take(self._loner.acquire)
        taken = 0
        try:
            while taken < self._count:
                await self._take(self._free.acquire)
                taken += 1
            with self.rest.progress.expected(may_take):
                yield
        finally:
            for _ in range(taken):
                self._free.release()
            self._loner.release()

    async def _take(self, acquire: Callable[[], Awaitable[bool]]) -> None:
        with self.rest():
            await acquire()


class _One:
    """Written out: a generator costs each message three times as much."""

    __slots__ = ("_may_take", "_slots")

    def __init__(self, slots: Slots, may_take: float | None) -> None:
        self._slots = slots
        self._may_take = may_take

    async def __aenter__(self) -> None:
        await self._slots.take()
        self._slots.rest.progress.begin(self, self._may_take)

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()
        self._slots.rest.progress.end(self)
