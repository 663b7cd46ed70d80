"""How many handlers run at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from relmsg.inbox.rest import Rest


class Slots:
    """How many handlers run at a time; one of them can ask to run alone."""

    def __init__(self, count: int, rest: Rest | None = None) -> None:
        self._count = count
        self._rest = rest or Rest()
        self._free = asyncio.Semaphore(count)  # first come, first served: a loner waiting for all is not starved
        self._loner = asyncio.Lock()

    def one(self) -> AbstractAsyncContextManager[None]:
        """Run beside others."""
        return _One(self)

    async def take(self) -> None:
        """Wait for a slot, which then has to be given back by ``release``."""
        if self._free.locked() or self._rest.is_over:
            await self._take(self._free.acquire)
        else:
            await self._free.acquire()  # does not wait

    def release(self) -> None:
        """Give a slot back."""
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


class _One:
    """Written out: a generator costs each message three times as much."""

    __slots__ = ("_slots",)

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    async def __aenter__(self) -> None:
        await self._slots.take()

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()
