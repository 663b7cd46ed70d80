"""Deletes confirmed rows while the next batch is sent, and parks those that the table does not let go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from relmsg.clock import Clock
from relmsg.db.divided import divided
from relmsg.errors import DatabaseAway
from relmsg.failpoint import reach
from relmsg.outage import Outage
from relmsg.outbox.notes import Notes
from relmsg.outbox.page import Malformed
from relmsg.outbox.pending import Pending
from relmsg.outbox.progress import Progress
from relmsg.outbox.row import Row
from relmsg.outbox.store import OutboxStore

RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 10.0
FEW, FEW_SECONDS = 100, 0.01
REFUSALS = 3  # so often the table refuses a row alone, while it lets others go, before the row is parked


@dataclass(slots=True)
class _Refused:
    """A confirmed row that cannot be deleted. ``deleted``: how many rows were, when that was met first."""

    deleted: int
    error: DatabaseAway
    times: int = 0


class Deletes:
    """Removes confirmed rows from the table, all that have gathered in one statement, one statement at a time.

    A commit costs the server as much for one row as for many, so FEW rows are not deleted within FEW_SECONDS of the
    deletes before them: the rows of a hot key are confirmed one by one.

    Holds: a row is deleted only after its confirm, and known to ``pending`` until its delete is committed. The row of a
    slot that is given up is deleted before. Nothing waits for a delete, except that no more is sent while
    ``pending.confirmed`` is at its limit.

    A row whose delete a trigger or a constraint refuses, again and again while other rows are deleted, is parked with
    that reason; until then it stays known, so it is not sent again. Where all are refused they wait.
    """

    def __init__(
        self,
        store: OutboxStore,
        pending: Pending,
        notes: Notes,
        *,
        progress: Progress,
        clock: Clock,
        database: Outage | None = None,
    ) -> None:
        self._database = database or Outage("PostgreSQL")
        self._store = store
        self._pending = pending
        self._notes = notes
        self._progress = progress
        self._clock = clock
        self._gathered: list[int] = []
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self._refused: dict[int, _Refused] = {}
        self._some_refused = asyncio.Event()
        self._deleted = 0

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
            while not await self._delete(ids):
                await self._clock.sleep(RETRY_SECONDS)
            reach("relay.after_delete")
            if not self._gathered:
                self._none.set()

    async def keep_trying(self) -> None:
        """Delete again what was refused, less and less often, and park what alone is refused; until cancelled."""
        pause = RETRY_SECONDS
        while True:
            await self._some_refused.wait()
            await self._clock.sleep(pause)
            pause = min(2 * pause, MOST_RETRY_SECONDS)
            await self._park()
            if self._refused:
                await self._delete(list(self._refused))
            else:
                self._some_refused.clear()
                pause = RETRY_SECONDS

    async def finished(self) -> None:
        """Wait until all that is confirmed is deleted, or was refused."""
        await self._none.wait()

    async def _delete(self, ids: Sequence[int]) -> bool:
        """Delete these as far as the server lets them go; False where it is away."""
        before = self._deleted
        try:
            refused = await divided(ids, self._store.delete, self._gone)
        except DatabaseAway as error:
            self._database.began(self, error)
            return False
        for row_id, refusal in refused.items():
            row = self._refused.setdefault(row_id, _Refused(before, refusal))
            row.times += 1
            self._some_refused.set()
            if row.deleted == self._deleted:  # nothing else was deleted since: is it the row, or all of them?
                self._database.began(self, refusal)
        return True

    def _gone(self, ids: Sequence[int]) -> None:
        self._database.ended(self)
        self._deleted += len(ids)
        self._pending.deleted(ids)
        if self._refused:
            for row_id in ids:
                self._refused.pop(row_id, None)

    async def _park(self) -> None:
        """Set aside the rows that are refused while others are deleted."""
        parked = []
        for row_id, row in list(self._refused.items()):
            if row.times >= REFUSALS and self._deleted > row.deleted:
                del self._refused[row_id]
                slot = self._pending.undeletable(row_id)
                if slot is not None:
                    why = f"it was sent, and cannot be deleted: {row.error}; mend that, and drop it"
                    parked.append(Malformed(row_id, slot, why))
        if parked:
            self._notes.park(parked)
            await self._notes.write()
