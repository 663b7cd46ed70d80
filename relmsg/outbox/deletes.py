"""Deleting what is confirmed, behind the back of the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from relmsg.clock import Clock
from relmsg.errors import DatabaseAway
from relmsg.failpoint import reach
from relmsg.outage import Outage
from relmsg.outbox.pending import Pending
from relmsg.outbox.progress import Progress
from relmsg.outbox.row import Row
from relmsg.outbox.store import OutboxStore

RETRY_SECONDS = 0.5
FEW, FEW_SECONDS = 100, 0.01


class Deletes:
    """Removes confirmed rows from the table, all that have gathered in one statement, one statement at a time.

    A commit costs the server as much for one row as for many, so FEW rows are not deleted within FEW_SECONDS of the
    deletes before them: the rows of a hot key are confirmed one by one.

    Holds: a row is deleted only after its confirm, and known to ``pending`` until its delete is committed. The row of a
    slot that is given up is deleted before. Nothing waits for a delete, except that no more is sent while
    ``pending.confirmed`` is at its limit.
    """

    def __init__(
        self,
        store: OutboxStore,
        pending: Pending,
        *,
        progress: Progress,
        clock: Clock,
        database: Outage | None = None,
    ) -> None:
        self._database = database or Outage("PostgreSQL")
        self._store = store
        self._pending = pending
        self._progress = progress
        self._clock = clock
        self._gathered: list[int] = []
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, rows: Sequence[Row]) -> None:
        """These rows are confirmed: the next ones of their keys may go, and they will be deleted."""
        self._progress.moved(self._clock.monotonic())
        for row in rows:
            self._pending.confirm(row)
        self._gathered.extend(row.id for row in rows)
        self._some.set()
        self._none.clear()

    async def keep_deleting(self) -> None:
        """Delete what gathers, until cancelled; a database that is away is waited for."""
        rested_at = 0.0
        while True:
            await self._some.wait()
            if len(self._gathered) < FEW and (rest := rested_at - self._clock.monotonic()) > 0:
                await self._clock.sleep(rest)
            self._some.clear()
            rested_at = self._clock.monotonic() + FEW_SECONDS
            ids, self._gathered = self._gathered, []
            reach("relay.before_delete")
            while True:
                try:
                    await self._store.delete(ids)
                    self._database.ended(self)
                    break
                except DatabaseAway as error:
                    self._database.began(self, error)
                    await self._clock.sleep(RETRY_SECONDS)
            reach("relay.after_delete")
            self._pending.deleted(ids)
            if not self._gathered:
                self._none.set()

    async def finished(self) -> None:
        """Wait until all that is confirmed is deleted."""
        await self._none.wait()
