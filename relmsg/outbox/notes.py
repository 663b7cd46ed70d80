"""Writes into the table why rows wait, and parks those that can never be sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from relmsg.clock import Clock
from relmsg.db.divided import divided
from relmsg.errors import DatabaseAway
from relmsg.outage import Outage
from relmsg.outbox.page import Malformed
from relmsg.outbox.pending import Pending
from relmsg.outbox.row import Row
from relmsg.outbox.store import OutboxStore, WaitReason
from relmsg.outbox.summary import Summary

log = logging.getLogger(__name__)

RETRY_SECONDS, REFUSED_RETRY_SECONDS = 0.5, 60.0


class Notes:
    """Gathers what is to be written about rows, and writes all of it by one statement of each kind.

    ``write`` tries once. What the database does not take stays gathered, and ``keep_writing`` tries again: no message
    waits for a note, and a row to be parked is known to ``pending`` until that is written.

    Where a trigger or constraint refuses one of the rows the others are written. That one is tried again each minute,
    and told once if it is to be parked.
    """

    def __init__(self, store: OutboxStore, pending: Pending, *, clock: Clock, database: Outage) -> None:
        self._store = store
        self._pending = pending
        self._clock = clock
        self._database = database
        self._reasons: dict[int, WaitReason] = {}
        self._parks: dict[int, str] = {}
        self._unwritten = asyncio.Event()
        self._writing = asyncio.Lock()
        self._stuck: dict[int, str] = {}
        self._stuck_reasons: dict[int, WaitReason] = {}
        self._some_stuck = asyncio.Event()
        self._told: set[int] = set()
        self._unparked = Summary("rows of the outbox cannot be parked; they are not sent while this relay runs")
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

            def parked(part: Sequence[tuple[int, str]]) -> None:
                self._pending.parked(row_id for row_id, _ in part)
                for row_id, _ in part:
                    del parks[row_id]
                    self._told.discard(row_id)

            def noted(part: Sequence[WaitReason]) -> None:
                for each in part:
                    del reasons[each.id]

            try:
                if parks:
                    self._unparkable(await divided(parks.items(), self._store.park, parked))
                    parks = {}
                if reasons:
                    refused = await divided(reasons.values(), self._store.note, noted)
                    self._stuck_reasons |= {each.id: each for each in refused}
                    reasons = {}
            except DatabaseAway as error:
                self._parks = parks | self._parks
                self._reasons = reasons | self._reasons
                self._database.began(self, error)
                self._unwritten.set()
            else:
                self._database.ended(self)  # also where a row was refused: the server has answered
            if self._stuck or self._stuck_reasons:
                self._some_stuck.set()

    def _unparkable(self, refused: Mapping[tuple[int, str], DatabaseAway]) -> None:
        """These rows cannot be parked: they stay known, which keeps them from being sent."""
        now = self._clock.monotonic()
        for (row_id, reason), error in refused.items():
            self._stuck[row_id] = reason
            if row_id not in self._told:
                self._told.add(row_id)
                if self._unparked.may_tell(now):
                    log.error("row %s of the outbox cannot be parked (%s): %s", row_id, reason, error)

    async def keep_writing(self) -> None:
        """Write again what the database did not take, until cancelled."""
        while True:
            await self._unwritten.wait()
            await self._clock.sleep(RETRY_SECONDS)
            self._unwritten.clear()
            await self.write()

    async def keep_trying(self) -> None:
        """Write again once a minute what was refused, until cancelled."""
        while True:
            await self._some_stuck.wait()
            await self._clock.sleep(REFUSED_RETRY_SECONDS)
            self._some_stuck.clear()
            stuck, self._stuck = self._stuck, {}
            self._parks = stuck | self._parks
            reasons, self._stuck_reasons = self._stuck_reasons, {}
            self._reasons = reasons | self._reasons
            await self.write()

    def tell(self) -> None:
        """Log how many rows there were beside those that were named."""
        for summary in (self._summary, self._unparked):
            if (told := summary.told(self._clock.monotonic())) is not None:
                log.error("%s", told)
