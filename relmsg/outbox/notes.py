"""Writes into the table why rows wait, and parks those that can never be sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from relmsg.clock import Clock
from relmsg.errors import DatabaseAway
from relmsg.outage import Outage
from relmsg.outbox.page import Malformed
from relmsg.outbox.pending import Pending
from relmsg.outbox.row import Row
from relmsg.outbox.store import OutboxStore, WaitReason
from relmsg.outbox.summary import Summary

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class Notes:
    """Gathers what is to be written about rows, and writes all of it by one statement of each kind.

    ``write`` tries once. What the database does not take stays gathered, and ``keep_writing`` tries again: no message
    waits for a note, and a row to be parked is known to ``pending`` until that is written.
    """

    def __init__(self, store: OutboxStore, pending: Pending, *, clock: Clock, database: Outage) -> None:
        self._store = store
        self._pending = pending
        self._clock = clock
        self._database = database
        self._reasons: dict[int, WaitReason] = {}
        self._parks: dict[int, str] = {}
        self._refused = asyncio.Event()
        self._writing = asyncio.Lock()
        self._summary = Summary("rows of the outbox are parked; `relmsg outbox list --parked` shows them")

    def waits(self, row: Row, reason: str, *, attempts: int) -> None:
        """A row waits for its destination; ``attempts`` are added to those it has."""
        known = self._reasons.get(row.id)
        self._reasons[row.id] = WaitReason(row.id, reason, attempts + (known.attempts if known else 0))

    def park(self, rows: Sequence[Malformed]) -> None:
        """Rows are to be set aside, each with its reason."""
        for row_id, slot, reason in rows:
            if self._summary.may_tell(self._clock.monotonic()):
                log.error("parked row %s of the outbox: %s", row_id, reason)
            self._pending.park(row_id, slot)
            self._parks[row_id] = reason

    async def write(self) -> None:
        """Write what has gathered, as far as the database takes it now."""
        async with self._writing:
            parks, self._parks = self._parks, {}
            reasons, self._reasons = self._reasons, {}
            if not parks and not reasons:
                return
            try:
                if parks:
                    await self._store.park(list(parks.items()))
                    self._pending.parked(parks)
                    parks = {}
                if reasons:
                    await self._store.note(list(reasons.values()))
            except DatabaseAway as error:
                self._parks = parks | self._parks
                self._reasons = reasons | self._reasons
                self._database.began(self, error)
                self._refused.set()
            else:
                self._database.ended(self)

    async def keep_writing(self) -> None:
        """Write again what the database did not take, until cancelled."""
        while True:
            await self._refused.wait()
            await self._clock.sleep(RETRY_SECONDS)
            self._refused.clear()
            await self.write()

    def tell(self) -> None:
        """Log how many rows were parked beside those that were named."""
        if (told := self._summary.told(self._clock.monotonic())) is not None:
            log.error("%s", told)
