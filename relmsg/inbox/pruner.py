"""Makes an inbox forget what it handled longer ago than its dedup window, beside its consumer and out of its way."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker

from relmsg.clock import Clock
from relmsg.db.failures import brief, sqlstate
from relmsg.db.search_path import SET_LOCAL
from relmsg.inbox.pruning import Pruned, Pruning, forget_all

log = logging.getLogger(__name__)

ROUND_SECONDS = 600.0
FIRST_SECONDS = 60.0  # processes that start together do not all look at once
REST = 19  # a batch is followed by a rest this many times as long: the pruner works a twentieth of the time
LEAST_REST_SECONDS = 0.02
REFUSED = "42501"


class Pruner:
    """Prunes the rows of some consumers every ten minutes, in small transactions with long rests between them.

    Any number of processes may run one for the same consumer: one prunes at a time, and each round is made by whoever
    comes first. It never fails its consumer: what goes wrong is logged, and tried again in the next round.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[Any],
        pruning: Pruning,
        consumers: Collection[str],
        keeps: timedelta | None,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._pruning = pruning
        self._consumers = sorted(consumers)
        self._keeps = keeps
        self._clock = clock
        self._chance = chance
        self._told: set[str] = set()

    async def run(self) -> None:
        """Store the window, then prune until cancelled."""
        stored = False
        while True:
            try:
                if not stored:
                    await self._store()
                    stored = True
                    await self._clock.sleep(FIRST_SECONDS * self._chance())
                for consumer in self._consumers:
                    await self._round(consumer)
            except Exception as error:  # noqa: BLE001 - what is not pruned now is pruned later
                self._tell(error)
            await self._clock.sleep(ROUND_SECONDS * (0.75 + self._chance() / 2))

    async def _store(self) -> None:
        async with self._transaction() as connection:
            for consumer in self._consumers:
                await self._pruning.set_window(connection, consumer, self._keeps)

    async def _round(self, consumer: str) -> None:
        async with self._transaction() as connection:
            window = await self._pruning.window(connection, consumer)
            indexed = await self._pruning.is_indexed(connection)
        if window is None or window.before is None or window.keeps is None:
            return
        now = window.before + window.keeps
        if window.pruned_at is not None and (now - window.pruned_at).total_seconds() < ROUND_SECONDS / 2:
            return  # another process has just done it, or is at it
        if not indexed:
            self._warn(
                "the inbox is not pruned: its index inbox_message_handled_at is missing: run `relmsg db upgrade`"
            )
            return
        before = window.before
        took, refused, first = 0.0, 0, None

        async def forget(since: datetime | None) -> Pruned | None:
            nonlocal took, refused, first
            begun = self._clock.monotonic()
            async with self._transaction() as connection:
                pruned = await self._pruning.forget(connection, consumer, before, since)
            took = self._clock.monotonic() - begun
            if pruned is not None and pruned.error is not None:
                refused, first = refused + pruned.refused, first or pruned.error
            return pruned

        async def rest(_rows: int) -> None:
            await self._clock.sleep(max(LEAST_REST_SECONDS, REST * took))

        if rows := await forget_all(forget, rest):
            log.info("%s: forgot %d messages handled before %s", consumer, rows, before.astimezone(UTC))
        if refused:
            log.error("%s: %d handled messages cannot be forgotten, the others are: %s", consumer, refused, first)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._sessions() as session, session.begin():
            connection = await session.connection(execution_options={"isolation_level": "READ COMMITTED"})
            await connection.execute(text(SET_LOCAL))  # this session is the user's, this transaction ours
            yield connection

    def _tell(self, error: Exception) -> None:
        if sqlstate(error) == REFUSED:
            self._warn(
                f"the inbox is not pruned: {brief(error)}; grant what docs/operations.md names, or run `relmsg inbox "
                "prune` from time to time"
            )
        else:
            log.info("the inbox was not pruned, it is tried again: %s", brief(error))

    def _warn(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.warning("%s", line)
