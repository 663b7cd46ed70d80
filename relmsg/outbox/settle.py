"""Settling: the consequence of each receipt, carried out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from relmsg.broker.confirm import publish_alone
from relmsg.broker.connection import Connection
from relmsg.broker.receipt import Nacked, NotConfirmed, Receipt, Unknown
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, DatabaseAway
from relmsg.outbox.consequence import ABOUT_THE_EXCHANGE, Consequence, consequence
from relmsg.outbox.deletes import RETRY_SECONDS, Deletes
from relmsg.outbox.holds import Hold, Holds
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import Positions
from relmsg.outbox.row import Destination, Row
from relmsg.outbox.store import OutboxStore

log = logging.getLogger(__name__)

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
        alone: Connection,
        *,
        metrics: RelayMetrics,
        clock: Clock,
        deadline: float,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._pending = pending
        self._positions = positions
        self._holds = holds
        self._deletes = deletes
        self._alone = alone
        self._metrics = metrics
        self._clock = clock
        self._deadline = deadline
        self._wake = wake
        self._isolation = asyncio.Lock()
        self._changed_at = 0.0

    @property
    def isolating(self) -> bool:
        """Whether rows are being tried alone; nothing else should be sent meanwhile, it could meet the same fate."""
        return self._isolation.locked()

    async def settle(self, rows: Sequence[Row], receipts: Sequence[Receipt], *, alone: bool) -> None:
        """Carry out the consequence of each row's receipt."""
        confirmed: list[Row] = []
        suspects: list[Row] = []
        about_exchange = True
        self._metrics.count(receipts)
        for row, receipt in zip(reversed(rows), reversed(receipts), strict=True):
            match consequence(receipt, alone=alone):
                case Consequence.DELETE:
                    confirmed.append(row)
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
                    await self._hold(row, row.destination, receipt)
                case Consequence.HOLD_EXCHANGE:
                    await self._hold(row, Destination(row.destination.exchange, None), receipt)
                case Consequence.PARK:
                    await self.park([(row.id, f"the broker refused it when it was sent alone: {_why(receipt)}")])
                    self._pending.done(row)
        if confirmed:
            self._deletes.add(confirmed[::-1])
        if suspects:
            await self._isolate(suspects[::-1], about_exchange=about_exchange)

    async def park(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Set rows aside, each with its reason; tried again until the database has taken it."""
        for row_id, reason in reasons:
            log.error("parked row %s of the outbox: %s", row_id, reason)
        await self._surely(lambda: self._store.park(reasons))

    async def keep_probing(self) -> None:
        """Send the probe of every hold when it is due; a destination that answers is released."""
        while True:
            await self._release_changed()
            hold = self._holds.due(self._clock.monotonic())
            if hold is None or self.isolating:
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
            log.info("%s is released", hold.destination)
        if outcome is Consequence.RESEND:
            self._metrics.count([receipt])
            await self._hold(hold.row, hold.destination, receipt)
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
            log.info("%s is released: the row that was tried there was changed", hold.destination)
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
                if self._holds.covers(row.destination):
                    self._pending.forget(row)
                elif row.destination.exchange in sound:
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
        try:
            return await publish_alone(self._alone, row.publish, deadline=self._deadline)
        except BrokerAway as error:
            log.warning("%s; trying again", error)
            return None

    async def _hold(self, row: Row, destination: Destination, receipt: Receipt) -> None:
        if row not in self._pending:
            return  # its slot has another owner by now
        now = self._clock.monotonic()
        known = next((hold for hold in self._holds if hold.row is row), None)
        if known is None and self._holds.covers(destination):
            self._pending.forget(row)
            return
        if known is not None and known.destination != destination:
            self._holds.release(known)
        hold = self._holds.put(destination, row, _why(receipt), now)
        self._pending.keep_only(row)
        log.warning("%s waits %.1f s: %s", hold.destination, hold.until - now, hold.reason)
        attempts = 1 if isinstance(receipt, Nacked) else 0
        await self._surely(lambda: self._store.note(row, hold.reason, attempts=attempts))

    async def _surely(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write, again and again, until the database has taken it: the broker's answer is known and stays true."""
        while True:
            try:
                await write()
            except DatabaseAway:
                await self._clock.sleep(RETRY_SECONDS)
            else:
                return


def _why(receipt: Receipt) -> str:
    """The reason for a row that was sent alone: a closed channel is then an answer, not a doubt."""
    if isinstance(receipt, Unknown):
        return str(receipt.cause)
    return receipt.reason if isinstance(receipt, NotConfirmed) else "confirmed"
