"""How many handlers run at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from relmsg.inbox.rest import Rest


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
