"""The way of a group of deliveries: one transaction, then all are acked; or nothing, and they go on one by one."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relmsg.broker.error_text import line_for
from relmsg.failpoint import reach
from relmsg.inbox.arrival import Arrival
from relmsg.inbox.attempt import may_take
from relmsg.inbox.gate import Gate
from relmsg.inbox.group import DUPLICATE, HANDLED, Committed, Groups
from relmsg.inbox.handler import Handler
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import DeliveryGone, Failed, Outcome, Unsettled
from relmsg.inbox.pace import Pace
from relmsg.inbox.slots import Slots
from relmsg.security.encryption import is_encrypted

log = logging.getLogger(__name__)

GONE = Unsettled(DeliveryGone())
STOPPED = Unsettled(asyncio.CancelledError("the consumer is stopping"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Takes several deliveries for one handler from their arrival to their end, or to the start of single ones."""

    groups: Groups
    database: Gate
    error_exchange: Gate
    slots: Slots
    metrics: Metrics

    async def handle(self, arrivals: list[Arrival], pace: Pace) -> list[Arrival]:
        """Handle and settle; what comes back has to be handled again, in this order.

        If anything goes wrong in the group, all of it comes back, each to be handled alone: that spends none of its
        attempts. So it is where relmsg itself fails: alone it is seen with which message. A cancellation leaves all
        messages unacked, as it does in ``Worker.handle``.
        """
        handler = arrivals[0].handler
        assert handler is not None
        attempted: list[Arrival] = []
        try:
            await self.error_exchange.opened()
            ended = await self.database.until_settled(
                lambda: self._attempt(handler, arrivals, attempted), lambda: any(map(_is_wanted, arrivals))
            )
        except asyncio.CancelledError:
            self._count(handler, arrivals, STOPPED)
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the messages are not to be forgotten
            secret = next(filter(is_encrypted, (each.delivery.message.headers for each in arrivals)), None)
            told = line_for(secret, error)
            log.error("%d messages for %s are handled one by one: %s", len(arrivals), handler.type, told)
            ended, attempted = Failed(error, "handler_failed"), arrivals
        if ended is None:
            self._count(handler, arrivals, GONE)
            return []
        self._count(handler, set(arrivals).difference(attempted), GONE)
        self.metrics.grouped(handler, committed=isinstance(ended, Committed))
        if isinstance(ended, Committed):
            pace.went_well(len(attempted), ended.took)
            return await self._settle(handler, attempted, ended)
        pace.failed(len(attempted))
        for arrival in attempted:
            arrival.alone = True
        return attempted

    async def _attempt(
        self, handler: Handler, arrivals: list[Arrival], attempted: list[Arrival]
    ) -> Committed | Failed | Unsettled:
        async with self.slots.one(may_take(handler)):
            # Lost while they waited: handling them now would only make duplicates (C9).
            attempted[:] = filter(_is_wanted, arrivals)
            if not attempted:
                return GONE
            return await self.groups.once(handler, [each.task for each in attempted if each.task is not None])

    async def _settle(self, handler: Handler, arrivals: Sequence[Arrival], committed: Committed) -> list[Arrival]:
        """Ack what is committed; what was left out comes back."""
        acked = False
        back = []
        for arrival, outcome in zip(arrivals, committed.outcomes, strict=True):
            if outcome is None:
                back.append(arrival)
            else:
                acked = await arrival.delivery.ack() or acked
        if acked:
            reach("consumer.after_ack")
        counts = Counter(map(type, committed.outcomes))
        for each in (HANDLED, DUPLICATE):
            if counts[type(each)]:
                self.metrics.settled(handler.consumer, handler.queue, each, counts[type(each)])
        return back

    def _count(self, handler: Handler, arrivals: Iterable[Arrival], outcome: Outcome) -> None:
        count = len(list(arrivals))
        if count:
            self.metrics.settled(handler.consumer, handler.queue, outcome, count)


def _is_wanted(arrival: Arrival) -> bool:
    return not arrival.delivery.is_stale
