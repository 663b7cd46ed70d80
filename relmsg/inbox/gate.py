"""The gate all workers pass: shut while a service is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from relmsg.clock import Clock, SystemClock
from relmsg.db.failures import brief
from relmsg.inbox.outcome import Unsettled
from relmsg.inbox.rest import Rest
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)
T = TypeVar("T")

BASE_SECONDS = 0.1
CAP_SECONDS = 10.0


class Gate:
    """Lets work through while the service it needs is there.

    Work that ends Unsettled shuts the gate for everybody. Then one piece of work at a time is let through as a trial,
    after a backoff with full jitter (0.1 s, doubling up to 10 s); the first that ends in any other way opens the gate
    for all. Trials are real work and no pings: a database can answer pings and still refuse to write.
    """

    def __init__(
        self,
        name: str,
        *,
        rest: Rest | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._rest = rest or Rest()
        self._clock = clock or SystemClock()
        self._chance = chance
        self._failures = 0
        self._trouble = ""
        self._paused = 0.0
        self._shut_at = 0.0
        self._opened = asyncio.Event()
        self._opened.set()
        self._trial = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether work passes without waiting."""
        return self._opened.is_set()

    @property
    def trouble(self) -> str | None:
        """Why the gate is shut; None while it is open."""
        return None if self.is_open else f"{self._name}: {self._trouble}"

    @property
    def paused_seconds(self) -> float:
        """How long the gate has been shut, in all."""
        return self._paused + (0.0 if self.is_open else self._clock.monotonic() - self._shut_at)

    async def opened(self) -> None:
        """Wait until the gate is open."""
        if not self.is_open:
            with self._rest():
                await self._opened.wait()

    async def until_settled(
        self, work: Callable[[], Awaitable[T | Unsettled]], wanted: Callable[[], bool] = lambda: True
    ) -> T | None:
        """Do the work, again and again, until it is not Unsettled; None once it is not ``wanted`` any more."""
        while wanted():
            if self.is_open:
                result = await work()
                if not isinstance(result, Unsettled):
                    return result
                if wanted():
                    self._shut(result.cause)
                continue
            async with self._turn():
                if self.is_open or not wanted():
                    continue
                result = await work()
                if not isinstance(result, Unsettled):
                    self._open()
                    return result
                self._failures += 1
                self._trouble = brief(result.cause)
                log.info("%s: still paused: %s", self._name, self._trouble)
        return None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One trial at a time, after its backoff."""
        with self._rest():
            await self._trial.acquire()
        try:
            if not self.is_open:
                with self._rest():
                    await self._clock.sleep(full_jitter(self._failures, BASE_SECONDS, CAP_SECONDS, self._chance))
            yield
        finally:
            self._trial.release()

    def _shut(self, cause: BaseException) -> None:
        if self.is_open:  # many workers meet the same trouble at the same time: it counts once
            self._opened.clear()
            self._shut_at = self._clock.monotonic()
            self._failures = 1
            self._trouble = brief(cause)
            log.warning("%s: pausing, nothing is lost and no attempt is spent: %s", self._name, self._trouble)

    def _open(self) -> None:
        pause = self._clock.monotonic() - self._shut_at
        self._paused += pause
        self._opened.set()
        log.warning("%s: going on after a pause of %.1f s", self._name, pause)
