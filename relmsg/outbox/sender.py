"""Sending: which of the rows that are ready go out as a batch, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from relmsg.broker.answer import really_cancelled
from relmsg.broker.confirm import ConfirmChannel
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, RelmsgError
from relmsg.outage import Outage
from relmsg.outbox.holds import Holds
from relmsg.outbox.pending import Pending
from relmsg.outbox.progress import Progress
from relmsg.outbox.row import Row
from relmsg.outbox.settle import REFUSED, Settler

WHOLE = 3  # batches in flight: the next is encoded and written while the broker works on the one before
PARTIAL = 2  # and parts of batches, so that a few rows need not wait until they are many
UNDELETED_BATCHES = 8  # confirmed rows whose delete is not done yet, at most
RETRY_SECONDS = 0.25


class Sender:
    """Sends what is ready in ``pending``, a task for each batch; ``ended`` is called with each task that is over.

    Few rows go at once while nothing else is on its way. Beside whole batches they wait until they are an eighth of
    one, or until a batch comes back: a hot key, which has one row ready at a time, would otherwise cost the broker, the
    database and the relay as much for this one row as the others for hundreds.
    """

    def __init__(
        self,
        channel: ConfirmChannel,
        pending: Pending,
        holds: Holds,
        settler: Settler,
        *,
        broker: Outage,
        progress: Progress,
        batch: int,
        clock: Clock,
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._channel = channel
        self._pending = pending
        self._holds = holds
        self._settler = settler
        self._batch = batch
        self._clock = clock
        self._ended = ended
        self._broker = broker
        self._progress = progress
        self._sending: dict[asyncio.Task[None], int] = {}

    @property
    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """The batches under way."""
        return list(self._sending)

    def send(self) -> int:
        """Send what may go now; how many rows that were."""
        sent = 0
        while self._may_send():
            rows = self._pending.take(self._batch, unless=lambda row: self._holds.covers(row.destination))
            if not rows:
                break
            task = asyncio.create_task(self._publish(rows))
            self._sending[task] = len(rows)
            task.add_done_callback(self._over)
            sent += len(rows)
        return sent

    async def finished(self) -> None:
        """Wait until no batch is under way."""
        if self._sending:
            await asyncio.wait(self.tasks)

    def _may_send(self) -> bool:
        ready = self._pending.ready
        if not ready or self._settler.isolating or self._pending.confirmed >= UNDELETED_BATCHES * self._batch:
            return False
        wholes = sum(rows >= self._batch for rows in self._sending.values())
        if ready >= self._batch:
            return wholes < WHOLE
        return len(self._sending) - wholes < PARTIAL and (not wholes or ready >= self._batch // 8)

    def _over(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._ended(task)

    async def _publish(self, rows: Sequence[Row]) -> None:
        try:
            receipts = await self._channel.publish([row.publish for row in rows])
        except REFUSED as error:
            await self._put_back(rows, error)
        except asyncio.CancelledError:
            if really_cancelled():
                raise
            await self._put_back(rows, BrokerAway("the connection to RabbitMQ was lost"))
        else:
            self._broker.ended(self)
            await self._settler.settle(rows, receipts, alone=False)

    async def _put_back(self, rows: Sequence[Row], error: RelmsgError) -> None:
        """Nothing was sent: the rows are ready again, and the broker is left alone for a moment."""
        self._broker.began(self, error)
        self._progress.answered(self._clock.monotonic())
        for row in reversed(rows):
            self._pending.again(row)
        await self._clock.sleep(RETRY_SECONDS)
