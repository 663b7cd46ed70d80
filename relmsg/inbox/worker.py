"""The way of a delivery, alone or in a group: attempt, settle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from relmsg.broker.error_exchange import CopyRefused, ErrorExchange
from relmsg.broker.error_text import trace_for
from relmsg.broker.receipt import Confirmed
from relmsg.errors import KilledWorker
from relmsg.failpoint import reach
from relmsg.inbox.arrival import Arrival
from relmsg.inbox.attempt import LOSSES_TOGETHER, Around, Attempts, Task, may_take
from relmsg.inbox.gate import Gate
from relmsg.inbox.handle.internal_error import concerns_message
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import (
    Attempted,
    Contended,
    DeliveryGone,
    Duplicate,
    Failed,
    Handled,
    Outcome,
    TaskCancelled,
    Unsettled,
)
from relmsg.inbox.slots import Slots
from relmsg.inbox.starts import UNFINISHED_ALLOWED, Starts
from relmsg.message import canonical_id
from relmsg.runtime.bounded_log import BoundedLog

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Takes one delivery from its arrival to its end. Many run at a time; all share these parts."""

    attempts: Attempts
    starts: Starts
    errors: ErrorExchange
    database: Gate
    error_exchange: Gate
    slots: Slots
    metrics: Metrics
    lines: BoundedLog = field(default_factory=lambda: BoundedLog(log))

    async def handle(self, arrival: Arrival, waits: Callable[[], None]) -> Outcome:
        """Handle a delivery and settle it. What comes back has been carried out.

        A cancellation leaves the message unacked, and so does everything that is not proven: then the broker delivers
        it again. ``waits`` is called when the first attempt is over: from then on the message only waits.
        """
        journey = _Journey(self, arrival, waits)
        outcome: Outcome = Unsettled(asyncio.CancelledError("the consumer is stopping"))
        try:
            outcome = await journey.settle(await journey.outcome())
        finally:
            self.metrics.settled(arrival.consumer, arrival.delivery.queue, outcome)
        return outcome


class _Journey:
    """One delivery under way."""

    def __init__(self, worker: Worker, arrival: Arrival, waits: Callable[[], None]) -> None:
        self._worker = worker
        self._arrival = arrival
        self._delivery = arrival.delivery
        self._waits = waits

    async def outcome(self) -> Outcome:
        """What becomes of the delivery. An exception that concerns this message alone, by a fault of ours or in what we
        call, is an outcome too."""
        try:
            return await self._attempted()
        except BaseException as error:
            if not concerns_message(error):
                raise
            return Failed(error, "internal_error")

    async def _attempted(self) -> Outcome:
        """Count the starts of what was delivered before, then attempt."""
        worker, task = self._worker, self._arrival.task
        if task is None:
            assert self._arrival.refused is not None
            return self._arrival.refused
        unfinished = await self._unfinished_starts(task.identity)
        if unfinished is None:
            return Unsettled(DeliveryGone())
        if unfinished >= UNFINISHED_ALLOWED:
            return Failed(KilledWorker(), "killed_worker", attempts=unfinished)
        await worker.error_exchange.opened()
        around = self._around(task, unfinished)
        return await worker.attempts.handle(task, around, self._wanted)

    async def settle(self, outcome: Outcome) -> Outcome:
        """The one table from outcome to effect on the delivery."""
        match outcome:
            case Handled() | Duplicate():
                await self._ack()
            case Failed():
                if not await self._copy_to_errors(outcome):
                    return Unsettled(DeliveryGone())
                await self._ack()
            case Unsettled():
                pass  # unacked: the broker delivers it again once the channel is closed
        return outcome

    async def _unfinished_starts(self, identity: Identity) -> int | None:
        """How often the message was begun and not finished; None if the delivery is gone before that is known."""
        if not self._delivery.redelivered:
            return 0
        starts = self._worker.starts
        return await self._stepping_aside(lambda: starts.unfinished(identity), self._wanted)

    async def _stepping_aside(
        self, work: Callable[[], Awaitable[T | Contended | Unsettled]], wanted: Callable[[], bool]
    ) -> T | None:
        """Do work of ours until it is done, None once it is not wanted any more.

        Where another transaction is in the way, this message alone waits; where the database is away, all do.
        """
        met = 0
        while True:
            result = await self._worker.database.until_settled(work, wanted)
            if not isinstance(result, Contended):
                return cast("T | None", result)
            met += 1
            await self._worker.attempts.step_aside(met)

    def _around(self, task: Task, unfinished: int) -> Around:
        """What an attempt is made in: a slot; after a start that never ended counted; after two of them, or two lost
        connections, alone.

        An attempt that somebody cancels who is not the consumer's end raises TaskCancelled: its start stays counted, so
        that a message that cancels its own task again and again ends in the error queue.
        """
        slots, identity, seconds = self._worker.slots, task.identity, may_take(task.handler)
        is_last_start = unfinished == UNFINISHED_ALLOWED - 1

        async def around(attempt: Callable[[], Awaitable[Attempted]]) -> Attempted:
            async def uncancelled() -> Attempted:
                try:
                    return await attempt()
                except asyncio.CancelledError as error:
                    if slots.rest.is_over:
                        raise
                    raise TaskCancelled from error

            slot = slots.alone if is_last_start or task.losses >= LOSSES_TOGETHER else slots.one
            async with slot(seconds):
                if not self._wanted():  # lost while it waited: handling it now would only make a duplicate (C9)
                    return Unsettled(DeliveryGone())
                outcome = await (self._worker.starts.counted(identity, uncancelled) if unfinished else attempt())
            self._waits()
            return outcome

        return around

    async def _copy_to_errors(self, failed: Failed) -> bool:
        """Have the error copy confirmed; only then may the original be acked."""
        worker, delivery, identity = self._worker, self._delivery, self._arrival.identity
        consumer = self._arrival.consumer
        message_id = str(delivery.message.id)
        if identity is not None and canonical_id(message_id) != identity.message_id:
            message_id = identity.message_id  # it came without an id that can be remembered

        async def taken() -> Confirmed | CopyRefused | Unsettled:
            receipt = await worker.errors.take(delivery, failed, consumer, message_id)
            return receipt if isinstance(receipt, Confirmed | CopyRefused) else Unsettled(receipt)

        answer = await worker.error_exchange.until_settled(taken, self._wanted)
        if answer is None:
            return False
        if isinstance(answer, CopyRefused):
            worker.metrics.set_aside(consumer, delivery.queue)
            worker.lines.error(
                "message %s from %s is left unacked, a person has to look: %s", message_id, delivery.queue, answer
            )
            return False
        worker.metrics.failed(consumer, delivery.queue, failed.reason)
        if failed.reason == "internal_error":
            log.error(
                "message %s from %s met a fault in relmsg or is refused by the database\n%s",
                message_id,
                delivery.queue,
                trace_for(delivery.message.headers, failed.error),
            )
        if identity is not None and delivery.redelivered:
            await self._stepping_aside(lambda: worker.starts.forget(identity), lambda: True)
        return True

    async def _ack(self) -> None:
        if await self._delivery.ack():
            reach("consumer.after_ack")

    def _wanted(self) -> bool:
        return not self._delivery.is_stale
