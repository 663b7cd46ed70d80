"""What a relay does beside its loop: it keeps its slots, and says what waits."""

from __future__ import annotations

import logging
from collections.abc import Callable

from relmsg.broker.connection import Connection
from relmsg.clock import Clock
from relmsg.db.failures import is_away
from relmsg.errors import DatabaseAway
from relmsg.outage import Outage
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.pending import Pending
from relmsg.outbox.progress import Progress
from relmsg.outbox.reader import Reader
from relmsg.outbox.slots import Slots
from relmsg.outbox.store import OutboxStore
from relmsg.runtime.rest import rest_after

log = logging.getLogger(__name__)

KEEP_SECONDS = 1.0
MEASURE_SECONDS = 2.0
MEASURE_SHARE = 0.01  # of the time
OLDEST_MOST_SECONDS = 10.0  # readiness rests on it
COUNT_MOST_SECONDS = 600.0


class Duties:
    """The relay's periodic work. Each duty runs until it is cancelled, and waits for a database that is away."""

    def __init__(
        self,
        slots: Slots,
        store: OutboxStore,
        reader: Reader,
        pending: Pending,
        publishing: Connection,
        *,
        metrics: RelayMetrics,
        progress: Progress,
        database: Outage,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._store = store
        self._reader = reader
        self._pending = pending
        self._publishing = publishing
        self._metrics = metrics
        self._progress = progress
        self._database = database
        self._clock = clock
        self._wake = wake
        self._leaving: frozenset[int] = frozenset()

    @property
    def readable(self) -> frozenset[int]:
        """The slots that may be read: ours, without those we are about to give up."""
        return self._slots.owned - self._leaving

    async def keep_slots(self) -> None:
        """Renew the lease, take what is free, and give up what is too much once all of it is settled."""
        while True:
            try:
                surplus = await self._slots.keep()
                self._leaving = surplus
                free = [slot for slot in surplus - self._reader.slots if not self._pending.unsettled_of_slot(slot)]
                if free:
                    await self._slots.release(free)
                    self._leaving -= frozenset(free)
                self._database.ended(self)
            except DatabaseAway as error:
                self._database.began(self, error)  # the lease runs on
            self._wake()
            await self._clock.sleep(KEEP_SECONDS)

    async def measure(self) -> None:
        """Tell the metrics what waits.

        The age of the oldest row is that of the row that was written first, slot by slot; that costs little. Counting
        costs a second or two for each ten million rows, so it is done as often as a hundredth of the time allows: in
        between, ``relmsg_outbox_backlog`` and ``relmsg_outbox_parked`` are those of the last count. That nothing waits,
        or something again, is seen at once.
        """
        count_at = oldest_at = 0.0
        told = False
        while True:
            self._metrics.blocked.set(self._publishing.blocked_seconds)
            self._metrics.reconnects.set(self._publishing.reconnects)
            now = self._clock.monotonic()
            try:
                if now >= oldest_at:
                    oldest = await self._store.oldest(self._slots.owned)
                    self._waits(oldest)
                    # The first time is that of making the connection.
                    oldest_at = self._after(now, OLDEST_MOST_SECONDS) if oldest_at else now
                    if oldest is not None and not self._progress.backlog:
                        count_at = now
                now = self._clock.monotonic()
                if now >= count_at:
                    self._progress.backlog, parked = await self._store.count(self._slots.owned)
                    self._metrics.backlog.set(self._progress.backlog)
                    self._metrics.parked.set(parked)
                    count_at = self._after(now, COUNT_MOST_SECONDS)
                told = False
            except DatabaseAway as error:
                # Messages are sent all the same. What keeps them too is told by those who send.
                if not told and not is_away(error.__cause__ or error):
                    log.warning("what waits cannot be counted for now: %s", error)
                    told = True
            await self._clock.sleep(MEASURE_SECONDS)

    def _waits(self, oldest: float | None) -> None:
        self._metrics.oldest.set(oldest or 0.0)
        if oldest is None:
            self._progress.moved(self._clock.monotonic())
            self._progress.backlog = 0
            self._metrics.backlog.set(0)

    def _after(self, began: float, most: float) -> float:
        now = self._clock.monotonic()
        return now + rest_after(now - began, share=MEASURE_SHARE, most=most)
