"""The commit-safe hint: tells the relay of another process that something was committed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg import arguments
from relmsg.clock import Clock, SystemClock
from relmsg.db.failures import brief
from relmsg.errors import UsageError
from relmsg.outbox.driver import Driver
from relmsg.outbox.notify import apart, notification
from relmsg.retry import full_jitter
from relmsg.runtime.background import Background
from relmsg.settings import schema_in_force

log = logging.getLogger(__name__)

GAP_SECONDS = 0.01  # at most 100 NOTIFY a second: too few to slow down commits (performance.md E)
DEADLINE_SECONDS = 5.0
GOODBYE_SECONDS = 1.0  # for the hint that is under way when the Hint is closed
FIRST_BACKOFF, MOST_BACKOFF = 0.1, 30.0


class Hint:
    """Wakes the relays of a database when a transaction has published: ``Outbox("orders", wake=hint)``.

    ::

        async with Hint(engine) as hint:
            outbox = Outbox("orders", wake=hint)

    Holds: a hint is sent after the COMMIT, on a connection of its own (one more a process; the engine's pool is not
    touched). It costs the caller nothing that waits. The first hint leaves at once; while it is under way, and for
    10 ms after, all others become one.

    Does not hold: that a hint arrives. It may be lost with its connection, which is made again after 0.1 to 30 s, with
    jitter; no error reaches the caller. The relay's polling finds the messages all the same, at most 0.25 s later.

    Leaving waits for a hint that is still to be sent, for a second at most. Called outside of ``async with``, it does
    nothing. Calls from other threads and event loops are safe.

    :param engine: of the database with the outbox; its connect arguments and creator are used for the new connection.
    :param schema: the database schema with relmsg's tables, as in ``Outbox``.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        schema: str | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if not isinstance(engine, AsyncEngine) or engine.dialect.driver != "asyncpg":
            raise UsageError("Hint(engine) takes an AsyncEngine of postgresql+asyncpg://")
        arguments.clock_and_chance("Hint", clock, chance)
        self._engine = engine
        self._notification = notification(schema_in_force(schema))
        self._clock = clock or SystemClock()
        self._chance = chance
        self._wanted = asyncio.Event()
        self._sent = asyncio.Event()  # all that was wanted
        self._sent.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: Background | None = None
        self._apart: AsyncEngine | None = None

    def __call__(self) -> None:
        """Something was committed."""
        loop = self._loop
        if loop is None:
            return
        if _running_loop() is loop:
            self._want()
        else:
            loop.call_soon_threadsafe(self._want)

    def _want(self) -> None:
        self._sent.clear()
        self._wanted.set()

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise UsageError("this Hint is entered already")
        self._loop = asyncio.get_running_loop()
        self._apart = apart(self._engine)
        self._driver = Driver(self._apart, deadline=DEADLINE_SECONDS)
        self._task = Background("hints", self._send, self._chance)
        self._task.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        assert self._apart is not None
        self._loop = None
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._sent.wait(), GOODBYE_SECONDS)
        finally:
            await self._end()

    async def _end(self) -> None:
        assert self._task is not None
        assert self._apart is not None
        # Not by a cancellation of the statement: asyncpg would ask the server to cancel it, behind our back.
        self._driver.abort()
        await self._task.stop()
        await self._driver.close()
        await self._apart.dispose()

    async def _send(self) -> None:
        failures = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._driver.fetch(self._notification)
            except Exception as error:  # noqa: BLE001 - a hint is a courtesy: nothing that happens to it matters to the work
                failures += 1
                self._wanted.set()
                if failures == 1:
                    log.warning("hints cannot be sent, the relay's polling finds the messages: %s", brief(error))
                await self._clock.sleep(full_jitter(failures, FIRST_BACKOFF, MOST_BACKOFF, self._chance))
            else:
                if failures:
                    log.info("hints are sent again")
                failures = 0
                if not self._wanted.is_set():
                    self._sent.set()
                await self._clock.sleep(GAP_SECONDS)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
