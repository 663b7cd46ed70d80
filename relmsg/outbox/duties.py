"""What a relay does beside its loop: it keeps its slots, and says what waits."""

from __future__ import annotations

import logging
from collections.abc import Callable

from relmsg.broker.connection import Connection
from relmsg.clock import Clock
from relmsg.errors import DatabaseAway
from relmsg.outbox.metrics import Progress, RelayMetrics
from relmsg.outbox.pending import Pending
from relmsg.outbox.reader import Reader
from relmsg.outbox.slots import Slots
from relmsg.outbox.store import OutboxStore

log = logging.getLogger(__name__)

KEEP_SECONDS = 1.0
MEASURE_SECONDS = 2.0


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
        self._clock = clock
        self._wake = wake
        self._leaving: frozenset[int] = frozenset()

    @property
    def readable(self) -> frozenset[int]:
        """The slots that may be read: ours, without those we are about to give up."""
        return self._slots.owned - self._leaving

    async def keep_slots(self) -> None:
        """Renew the lease, take what is free, and give up what is too much once nothing of it is at the broker."""
        while True:
            try:
                surplus = await self._slots.keep()
                self._leaving = surplus
                free = [slot for slot in surplus - self._reader.slots if not self._pending.out_of_slot(slot)]
                if free:
                    await self._slots.release(free)
                    self._leaving -= frozenset(free)
            except DatabaseAway as error:
                log.warning("the lease could not be renewed: %s", error)
            self._wake()
            await self._clock.sleep(KEEP_SECONDS)

    async def measure(self) -> None:
        """Tell the metrics what waits."""
        while True:
            began = self._clock.monotonic()
            self._metrics.blocked.set(self._publishing.blocked_seconds)
            self._metrics.reconnects.set(self._publishing.reconnects)
            try:
                measure = await self._store.measure(self._slots.owned)
            except DatabaseAway:
                await self._clock.sleep(MEASURE_SECONDS)
                continue
            self._metrics.measured(measure)
            self._progress.backlog = measure.backlog
            now = self._clock.monotonic()
            if not measure.backlog:
                self._progress.moved(now)
            # Counting a backlog of millions takes seconds: then it is counted rarely.
            await self._clock.sleep(max(MEASURE_SECONDS, 20 * (now - began)))
