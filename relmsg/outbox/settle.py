"""Settling: the consequence of each receipt, carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence

from relmsg.broker.answer import really_cancelled
from relmsg.broker.confirm import publish_alone
from relmsg.broker.connection import Connection
from relmsg.broker.receipt import Nacked, NotConfirmed, Receipt, Unknown
from relmsg.clock import Clock
from relmsg.errors import AccessRefused, BrokerAway, BrokerRefused, DatabaseAway
from relmsg.outage import Outage
from relmsg.outbox.consequence import ABOUT_THE_EXCHANGE, Consequence, consequence
from relmsg.outbox.deletes import Deletes
from relmsg.outbox.hold_log import HoldLog
from relmsg.outbox.holds import WHOLE_EXCHANGE, Hold, Holds
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.notes import Notes
from relmsg.outbox.page import Malformed
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import Positions
from relmsg.outbox.progress import Progress
from relmsg.outbox.row import Destination, Row
from relmsg.outbox.store import OutboxStore

REFUSED = (BrokerAway, AccessRefused, BrokerRefused)  # the broker cannot, or does not let us, take anything now
SILENT_TRIES = 3  # a row that nobody answered for so often is tried alone: it may be what cuts the connection
PROBE_SECONDS = 0.1
CHANGED_SECONDS = 2.0  # how often to ask whether an operator has redirected, parked or dropped the row of a hold


class Settler:
    """Carries out what a receipt means for its row, and finds the guilty row when a channel was closed.

    Rows are tried alone on a connection of their own, so that the broker's answer is about them and nothing else.
    """

    def __init__(
        self,
        store: OutboxStore,
        pending: Pending,
        positions: Positions,
        holds: Holds,
        deletes: Deletes,
        notes: Notes,
        alone: Connection,
        *,
        broker: Outage,
        owned: Callable[[], Container[int]],
        metrics: RelayMetrics,
        progress: Progress,
        clock: Clock,
        deadline: float,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._pending = pending
        self._positions = positions
        self._holds = holds
        self._deletes = deletes
        self._notes = notes
        self._alone = alone
        self._owned = owned
        self._metrics = metrics
        self._progress = progress
        self._clock = clock
        self._deadline = deadline
        self._wake = wake
        self._log = HoldLog(clock)
        self._broker = broker
        self._isolation = asyncio.Lock()
        self._changed_at = 0.0

    @property
    def isolating(self) -> bool:
        """Whether rows are being tried alone; nothing else should be sent meanwhile, it could meet the same fate."""
        return self._isolation.locked()

    async def settle(self, rows: Sequence[Row], receipts: Sequence[Receipt], *, alone: bool) -> None:
        """Carry out the consequence of each row's receipt: first of those that are confirmed, which frees the next rows
        of their keys, then of the others, for all of which the database is asked once."""
        confirmed: list[Row] = []
        others: list[tuple[Row, Receipt, Consequence]] = []
        for row, receipt in zip(rows, receipts, strict=True):
            meant = consequence(receipt, alone=alone)
            if meant is Consequence.DELETE:
                confirmed.append(row)
            else:
                others.append((row, receipt, meant))
        self._metrics.count(receipts)
        self._progress.answered(self._clock.monotonic())
        if confirmed:
            self._deletes.add(confirmed)
        if others:
            await self._settle_others(others, alone=alone)

    async def _settle_others(self, others: Sequence[tuple[Row, Receipt, Consequence]], *, alone: bool) -> None:
        suspects: list[Row] = []
        about_exchange = True
        for row, receipt, meant in reversed(others):  # so that the first is at the head again
            if not self._pending.owns(row):
                self._pending.forget(row)  # its slot was lost: another relay sends it
                continue
            match meant:
                case Consequence.RESEND:
                    row.unanswered += 1
                    if row.unanswered % SILENT_TRIES == 0 and not alone:
                        suspects.append(row)
                        about_exchange = False
                    else:
                        self._pending.again(row)
                case Consequence.ISOLATE:
                    suspects.append(row)
                    about_exchange &= getattr(receipt, "reply_code", None) in ABOUT_THE_EXCHANGE
                case Consequence.HOLD_DESTINATION:
                    self._hold(row, row.destination, receipt)
                case Consequence.HOLD_EXCHANGE:
                    self._hold(row, Destination(row.destination.exchange, None), receipt)
                case Consequence.PARK:
                    why = f"the broker refused it when it was sent alone: {_why(receipt)}"
                    self._notes.park([Malformed(row.id, row.slot, why)])
                    self._pending.done(row)
        await self._notes.write()
        if suspects:
            await self._isolate(suspects[::-1], about_exchange=about_exchange)

    async def park(self, rows: Sequence[Malformed]) -> None:
        """Set rows aside, each with its reason."""
        self._notes.park(rows)
        await self._notes.write()

    async def keep_probing(self) -> None:
        """Send the probe of every hold when it is due; a destination that answers is released."""
        while True:
            await self._release_changed()
            self._log.tell()
            self._notes.tell()
            hold = self._holds.due(self._clock.monotonic())
            if hold is None or self.isolating or hold.row.slot not in self._owned():
                if not self.isolating:
                    self._broker.ended(self)
                await self._clock.sleep(PROBE_SECONDS)
                continue
            self._pending.put_out(hold.row)
            receipt = await self._publish_alone(hold.row)
            if receipt is None:
                self._pending.keep_only(hold.row)
                await self._clock.sleep(1.0)
                continue
            await self._probed(hold, receipt)

    async def _probed(self, hold: Hold, receipt: Receipt) -> None:
        outcome = consequence(receipt, alone=True)
        still = {Consequence.HOLD_EXCHANGE} if hold.destination.routing_key is None else {Consequence.HOLD_DESTINATION}
        if outcome not in still and outcome is not Consequence.RESEND:
            self._holds.release(hold)
            self._log.released(hold.destination)
        if outcome is Consequence.RESEND:
            self._metrics.count([receipt])
            self._hold(hold.row, hold.destination, receipt)
            await self._notes.write()
        else:
            await self.settle([hold.row], [receipt], alone=True)
        if hold.destination not in self._holds:
            self._read_anew()

    async def _release_changed(self) -> None:
        """Release the holds whose row an operator has redirected, parked or dropped: it must not be sent as it was."""
        now = self._clock.monotonic()
        if not len(self._holds) or now < self._changed_at:
            return
        self._changed_at = now + CHANGED_SECONDS
        rows = {hold.row.id: hold.row for hold in self._holds}
        try:
            unchanged = await self._store.unchanged(list(rows.values()))
        except DatabaseAway:
            return
        changed = [hold for hold in self._holds if hold.row.id in rows.keys() - unchanged]
        for hold in changed:
            self._holds.release(hold)
            self._pending.forget(hold.row)
            self._log.released(hold.destination)
        if changed:
            self._read_anew()

    def _read_anew(self) -> None:
        """Read what was passed by while it was held: from the beginning and in order."""
        self._pending.forget_unproven()
        self._positions.rewind()
        self._wake()

    async def _isolate(self, suspects: Sequence[Row], *, about_exchange: bool) -> None:
        """Send rows alone, one after another, until the guilty ones are known.

        If the broker complained about an exchange, one row that gets through clears the others for the same exchange.
        """
        async with self._isolation:
            sound: set[str] = set()
            cleared: list[Row] = []
            for row in suspects:
                if self._holds.covers(row.destination) or not self._pending.owns(row):
                    self._pending.forget(row)
                elif row.destination.exchange in sound or row.slot not in self._owned():
                    cleared.append(row)
                else:
                    receipt = await self._publish_alone(row)
                    if receipt is None:
                        cleared.append(row)
                        continue
                    await self.settle([row], [receipt], alone=True)
                    if about_exchange and consequence(receipt, alone=True) is Consequence.DELETE:
                        sound.add(row.destination.exchange)
            for row in reversed(cleared):
                self._pending.again(row)
        self._wake()

    async def _publish_alone(self, row: Row) -> Receipt | None:
        """What the broker says of one row; None where it could not be asked."""
        try:
            receipt = await publish_alone(self._alone, row.publish, deadline=self._deadline)
        except REFUSED as error:
            self._broker.began(self, error)
            receipt = None
        except asyncio.CancelledError:
            if really_cancelled():
                raise
            receipt = None
        else:
            self._broker.ended(self)
        self._progress.answered(self._clock.monotonic())
        return receipt

    def _hold(self, row: Row, destination: Destination, receipt: Receipt) -> None:
        if not self._pending.owns(row):
            return  # its slot has another owner by now
        now = self._clock.monotonic()
        known = self._holds.of(row)
        if known is None and self._holds.covers(destination):
            self._pending.forget(row)
            return
        if known is not None and known.destination != destination:
            self._holds.release(known)
        hold = self._holds.put(destination, row, _why(receipt), now)
        self._pending.keep_only(row)
        self._log.waits(hold)
        reason = WHOLE_EXCHANGE + hold.reason if hold.destination.routing_key is None else hold.reason
        self._notes.waits(row, reason, attempts=1 if isinstance(receipt, Nacked) else 0)


def _why(receipt: Receipt) -> str:
    """The reason for a row that was sent alone: a closed channel is then an answer, not a doubt."""
    if isinstance(receipt, Unknown):
        return str(receipt.cause)
    return receipt.reason if isinstance(receipt, NotConfirmed) else "confirmed"
