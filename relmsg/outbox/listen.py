"""The relay's ear for hints: LISTEN on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.clock import Clock, SystemClock
from relmsg.db.failures import brief
from relmsg.db.pooler import behind_pooler
from relmsg.outbox.notify import apart, channel
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
CHECK_SECONDS = 30.0
FIRST_BACKOFF, MOST_BACKOFF = 0.1, 30.0


class Listener:
    """Calls ``wake`` for each hint of a schema and counts it, as long as ``run`` runs.

    A hint is a courtesy: whatever happens here, the relay polls. A lost connection is replaced after 0.1 to 30 s, with
    jitter; one that died without a word is found out within 40 s. ``wake`` is also called when the listening
    begins, for what was hinted before.

    Through a pooler LISTEN would reach a server connection that others get next, so nothing is listened for, unless
    ``pooled`` says that this pooler keeps one for each client.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        wake: Callable[[], None],
        *,
        schema: str,
        hints: Counter,
        pooled: bool = False,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._wake = wake
        self._hints = hints
        self._pooled = pooled
        self._channel = channel(schema)
        self._clock = clock or SystemClock()
        self._chance = chance
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled. Where LISTEN does not work this is said once, and nothing is heard."""
        failures = 0
        engine = apart(self._engine)
        try:
            while True:
                try:
                    await self._listen(engine)
                except _Pooled:
                    log.warning(
                        "no hints are heard, polling goes on: a pooler such as PgBouncer stands before PostgreSQL; "
                        "name a database URL that leads past it in RELMSG_LISTEN_URL, or set RELMSG_LISTEN=off"
                    )
                    await asyncio.Event().wait()
                except Exception as error:  # noqa: BLE001 - whatever it is, polling goes on
                    failures = 1 if self.listening.is_set() else failures + 1
                    if failures == 1:
                        log.warning("no hints are heard for now, polling goes on: %s", brief(error))
                finally:
                    self.listening.clear()
                await self._clock.sleep(full_jitter(failures, FIRST_BACKOFF, MOST_BACKOFF, self._chance))
        finally:
            await engine.dispose()

    async def _listen(self, engine: AsyncEngine) -> None:
        lost = asyncio.Event()
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await engine.connect()
        try:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            async with asyncio.timeout(CONNECT_SECONDS):
                if not self._pooled and await behind_pooler(driver):
                    raise _Pooled
                await driver.add_listener(self._channel, self._heard)
            driver.add_termination_listener(lambda _: lost.set())
            self.listening.set()
            self._wake()
            while not lost.is_set():
                try:
                    async with asyncio.timeout(CHECK_SECONDS):
                        await lost.wait()
                except TimeoutError:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await driver.fetch("SELECT 1")
            raise ConnectionError("the connection was lost")
        finally:
            # Never back into a pool: it would go on listening there.
            await asyncio.shield(connection.invalidate())
            await connection.close()

    def _heard(self, *_: object) -> None:
        self._hints.inc()
        self._wake()


class _Pooled(Exception):
    """LISTEN would go to a server connection that is not ours alone."""
