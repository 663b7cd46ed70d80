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
HAND_ON_SECONDS = 45.0  # more than a confirm may take: a trial that is longer is a slow handler, and proves nothing yet
TRIAL_SECONDS = 120.0


class Gate:
    """Lets work through while the service it needs is there.

    Work that ends Unsettled shuts the gate for everybody. Then one piece of work at a time is let through as a trial,
    after a backoff with full jitter (0.1 s, doubling up to 10 s); the first that ends in any other way opens the gate
    for all. Trials are real work and no pings: a database can answer pings and still refuse to write.

    A gate is shut only as long as somebody is there who tries. When the last one leaves, because its delivery is gone,
    it is cancelled or it fails, the gate opens: the next piece of work finds out, and goes on with the same backoff if
    the service is still away. A trial that takes longer than 45 s has the next one begin beside it.
    """

    def __init__(
        self,
        name: str,
        *,
        rest: Rest | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        hand_on: float = HAND_ON_SECONDS,
    ) -> None:
        self._name = name
        self._rest = rest or Rest()
        self._clock = clock or SystemClock()
        self._chance = chance
        self._hand_on_seconds = hand_on
        self._failures = 0
        self._trouble = ""
        self._paused = 0.0
        self._shut_at = 0.0
        self._backoff = 0.0
        self._trying = 0
        self._opened = asyncio.Event()
        self._opened.set()
        self._shut_now = asyncio.Event()
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
        return self._paused + self.shut_seconds

    @property
    def shut_seconds(self) -> float:
        """For how long it is shut; 0 while it is open."""
        return 0.0 if self.is_open else self._clock.monotonic() - self._shut_at

    async def opened(self) -> None:
        """Wait until the gate is open."""
        if not self.is_open:
            with self._rest():
                await self._opened.wait()

    async def shut_for(self, seconds: float) -> None:
        """Wait until it has been shut for so many seconds without a break."""
        while True:
            await self._shut_now.wait()
            left = seconds - self.shut_seconds
            if left <= 0:
                return
            await self._clock.sleep(left)

    async def until_settled(
        self, work: Callable[[], Awaitable[T | Unsettled]], wanted: Callable[[], bool] = lambda: True
    ) -> T | None:
        """Do the work, again and again, until it is not Unsettled; None once it is not ``wanted`` any more."""
        while wanted():
            if self.is_open:
                result = await work()
                if not isinstance(result, Unsettled):
                    if self._failures and self.is_open:
                        self._failures = 0
                    return result
                if not wanted():
                    return None
                self._shut(result.cause)
            settled = await self._try(work, wanted)
            if settled is not None:
                return settled
        return None

    async def _try(self, work: Callable[[], Awaitable[T | Unsettled]], wanted: Callable[[], bool]) -> T | None:
        """Try while the gate is shut and the work wanted, then None. Whoever is in here holds the gate shut."""
        self._trying += 1
        try:
            while not self.is_open and wanted():
                async with self._turn(wanted):
                    if self.is_open or not wanted():
                        continue
                    with self._rest.progress.expected(TRIAL_SECONDS):
                        result = await work()
                    if not isinstance(result, Unsettled):
                        self._succeeded()
                        return result
                    self._failed(result.cause)
            return None
        finally:
            self._trying -= 1
            if not self._trying and not self.is_open:
                log.info("%s: nobody is left who waits for it, the next message finds out", self._name)
                self._open()

    @asynccontextmanager
    async def _turn(self, wanted: Callable[[], bool]) -> AsyncIterator[None]:
        """One trial at a time, not before its time has come. Who is not wanted any more leaves without that wait."""
        with self._rest():
            await self._trial.acquire()
        timer: asyncio.TimerHandle | None = None
        hand_on = _Once(self._trial.release)
        try:
            if not self.is_open and wanted():
                # Also where nothing is left to wait: work that fails without waiting must not keep the loop to itself.
                await self._rest.sleep(self._clock, self._backoff)
                self._backoff = 0.0
            timer = asyncio.get_running_loop().call_later(self._hand_on_seconds, hand_on)
            yield
        finally:
            if timer is not None:
                timer.cancel()
            hand_on()

    def _shut(self, cause: BaseException) -> None:
        if self.is_open:  # many workers meet the same trouble at the same time: it counts once
            self._opened.clear()
            self._shut_now.set()
            self._shut_at = self._clock.monotonic()
            self._failed(cause, "pausing, nothing is lost and no attempt is spent", logging.WARNING)

    def _failed(self, cause: BaseException, told: str = "still paused", level: int = logging.INFO) -> None:
        self._failures += 1
        self._trouble = brief(cause)
        self._backoff = full_jitter(self._failures, BASE_SECONDS, CAP_SECONDS, self._chance)
        log.log(level, "%s: %s: %s", self._name, told, self._trouble)

    def _succeeded(self) -> None:
        self._failures = 0
        if not self.is_open:
            log.warning("%s: going on after a pause of %.1f s", self._name, self.shut_seconds)
            self._open()

    def _open(self) -> None:
        self._paused += self.shut_seconds
        self._shut_now.clear()
        self._opened.set()


class _Once:
    """Calls a function the first time it is called itself."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()
