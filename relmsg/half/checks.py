"""Check-back: whose producer has not decided in time is asked for, group by group, never more than the group can take.

A check is claimed in the database first and sent then. Whatever is lost in between, or on the way, or with the member
that had it, is sent anew at the next interval; only what a member says it has received counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.declare import ensure_queue
from relmsg.broker.receipt import Confirmed
from relmsg.clock import Clock, SystemClock
from relmsg.db.failures import named
from relmsg.errors import BrokerAway, RelmsgError
from relmsg.failpoint import reach
from relmsg.half.half import Half
from relmsg.half.metrics import CoordinatorMetrics
from relmsg.half.protocol import checks_of
from relmsg.half.set_aside import SetAside
from relmsg.half.state import HalfState
from relmsg.half.store import DueCheck, HalfStore, Parked
from relmsg.runtime.bounded_log import BoundedLog

log = logging.getLogger(__name__)

MOST_WAITING = 100
"""How many checks may wait in the queue of a group. One that is away finds no more when it is back."""
ROUNDS = 10
JITTER = 0.1


@dataclass(slots=True)
class _Room:
    """What a group can take. ``waiting``: how many checks lay in its queue before we sent any."""

    waiting: int
    left: int


@dataclass(slots=True)
class _Plan:
    """What becomes of the checks that are due."""

    send: list[UUID] = field(default_factory=list)
    later: list[UUID] = field(default_factory=list)
    groups_later: set[str] = field(default_factory=set)


class Checks:
    """Sends the checks that are due, the longest overdue first, and parks what was checked often enough.

    A half message whose last check nobody has received is not sent another one while checks wait in the group's queue:
    its own may be among them. Neither is anything sent to a group in whose queue 100 wait. Both are postponed, spread
    out, and nothing is counted.
    """

    def __init__(
        self,
        store: HalfStore,
        connection: Connection,
        channel: ConfirmChannel,
        *,
        metrics: CoordinatorMetrics,
        chance: Callable[[], float],
        postpone: timedelta,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._connection = connection
        self._channel = channel
        self._metrics = metrics
        self._chance = chance
        self._postpone = postpone
        self._lines = BoundedLog(log)
        self._refused = SetAside("checked", clock or SystemClock())
        self._not_parked = SetAside("parked", clock or SystemClock())

    async def scan(self, limit: int) -> int:
        """Look once at what is due, and send at most ``limit`` checks; how many were claimed.

        :raises DatabaseAway: it has to be looked at again; what was claimed and not sent counts for nothing.
        """
        await self._park()
        rooms: dict[str, _Room | None] = {}
        claimed = 0
        for _ in range(ROUNDS):
            due = await self._store.due(limit - claimed, self._refused())
            if not due:
                break
            try:
                plan = await self._plan(due, rooms)
            except BrokerAway as error:
                log.debug("no checks are sent: %s", error)
                break
            claimed += await self._send(plan.send)
            if plan.later:
                await self._refused.each(plan.later, self._postpone_these)
            if plan.groups_later:
                await self._postpone_groups(sorted(plan.groups_later))
            if claimed >= limit:
                break
        return claimed

    async def _park(self) -> None:
        store, refused = self._store, self._not_parked
        parked: list[Parked] = []

        async def all_due() -> None:
            parked.extend(await store.park(but=refused()))

        async def these(half_ids: Sequence[UUID]) -> None:
            parked.extend(await store.park_these(half_ids))

        try:
            await refused.all_or_each(all_due, lambda: store.to_park(but=refused()), these)
        finally:
            self._tell(parked)

    async def _postpone_these(self, half_ids: Sequence[UUID]) -> None:
        await self._store.postpone(half_ids, self._spread(half_ids), self._postpone)

    async def _postpone_groups(self, groups: Sequence[str]) -> None:
        store, refused = self._store, self._refused
        await refused.all_or_each(
            lambda: store.postpone_groups(groups, self._postpone, but=refused()),
            lambda: store.of_groups(groups, but=refused()),
            self._postpone_these,
        )

    def _tell(self, parked: Sequence[Parked]) -> None:
        for each in parked:
            self._lines.warning(
                "half message %s (%s) of group %r is parked: %d checks and no decision, the last answer was %s; decide "
                "with `relmsg half commit`, `rollback` or `resume`",
                each.half_id,
                each.type,
                each.group,
                each.checks,
                each.last_answer or "none",
            )
        self._metrics.ended(HalfState.PARKED, len(parked))

    async def _plan(self, due: Sequence[DueCheck], rooms: dict[str, _Room | None]) -> _Plan:
        plan = _Plan()
        for each in due:
            if each.group not in rooms:
                rooms[each.group] = await self._room(each.group)
            room = rooms[each.group]
            if room is None or room.left <= 0:
                plan.groups_later.add(each.group)
            elif each.is_out and room.waiting:
                plan.later.append(each.half_id)
            else:
                room.left -= 1
                plan.send.append(each.half_id)
        return plan

    async def _room(self, group: str) -> _Room | None:
        """What the group can take now; None where its queue cannot be had."""
        try:
            waiting = await ensure_queue(self._connection, checks_of(group))
        except BrokerAway:
            raise
        except RelmsgError as error:
            self._lines.warning("group %r cannot be asked: %s", group, error)
            return None
        return _Room(waiting, MOST_WAITING - waiting)

    async def _send(self, half_ids: Sequence[UUID]) -> int:
        if not half_ids:
            return 0
        claimed: list[tuple[Half, int]] = []

        async def claim(part: Sequence[UUID]) -> None:
            claimed.extend(await self._store.claim(part, self._spread(part), self._unsendable))

        await self._refused.each(half_ids, claim)
        reach("coordinator.after_claim")
        if claimed:
            await self._publish(claimed)
            reach("coordinator.after_checks")
        return len(claimed)

    async def _publish(self, claimed: Sequence[tuple[Half, int]]) -> None:
        checks = []
        for half, number in claimed:
            try:
                checks.append(half.check(number))
            except Exception as error:  # noqa: BLE001 - one half message must not keep the others from being checked
                self._unsendable(half.half_id, error)
        try:
            receipts = await self._channel.publish(checks)
        except RelmsgError as error:
            log.warning("%d checks could not be sent, they are sent at their next interval: %s", len(claimed), error)
            return
        confirmed = sum(isinstance(receipt, Confirmed) for receipt in receipts)
        self._metrics.sent(confirmed)
        if confirmed < len(receipts):
            failed = next(receipt for receipt in receipts if not isinstance(receipt, Confirmed))
            log.warning(
                "%d of %d checks are not confirmed, they are sent at their next interval; the first: %s",
                len(receipts) - confirmed,
                len(receipts),
                failed,
            )

    def _unsendable(self, half_id: UUID, error: Exception) -> None:
        self._metrics.failed()
        self._lines.error("half message %s: no check can be made of it: %s", half_id, named(error))

    def _spread(self, half_ids: Sequence[UUID]) -> list[float]:
        return [1 - JITTER + 2 * JITTER * self._chance() for _ in half_ids]
