"""From the socket to the handlers: deliveries are noted, sorted into the lines of their handlers, and dispatched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from relmsg.broker.subscriber import Delivery
from relmsg.inbox.arrival import DEFAULT_LIMITS, Arrival, arrived
from relmsg.inbox.dispatcher import Dispatcher
from relmsg.inbox.handle.limits import Limits
from relmsg.inbox.handler import Handler
from relmsg.inbox.identity import MissingId
from relmsg.inbox.lines import Line
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import Duplicate, Failed, Handled
from relmsg.inbox.pace import Pace
from relmsg.inbox.registry import Registry
from relmsg.inbox.together import STOPPED, Together
from relmsg.inbox.worker import Worker
from relmsg.security.encryption import Encryption
from relmsg.security.trust import Trust

GIVE_BACK_SECONDS = 1.0


class Intake:
    """Takes deliveries, and has each handled, alone by the ``worker`` or ``together`` with others."""

    def __init__(
        self,
        name: str,
        registry: Registry,
        missing_id: MissingId,
        worker: Worker,
        together: Together,
        metrics: Metrics,
        *,
        concurrency: int,
        fault: Callable[[BaseException], None],
        trust: Trust | None = None,
        encryption: Encryption | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._name = name
        self._registry = registry
        self._missing_id = missing_id
        self._trust = trust
        self._encryption = encryption
        self._limits = limits
        self._worker = worker
        self._together = together
        self._metrics = metrics
        self._progress = worker.slots.rest.progress
        self._fault = fault
        self._dispatcher: Dispatcher[Arrival] = Dispatcher(
            concurrency, one=self._one, many=self._many, fault=fault, unfinished=self._give_back
        )
        self._lines: dict[tuple[str, str], Line[Arrival]] = {}
        self._came: list[Delivery] = []
        self._loop = asyncio.get_running_loop()

    @property
    def tasks(self) -> frozenset[asyncio.Task[Any]]:
        """What is under way, one task for each message or group."""
        return frozenset(self._dispatcher.tasks)

    @property
    def count(self) -> int:
        """How many deliveries are here: waiting, or under way."""
        return self._dispatcher.count

    def put(self, delivery: Delivery) -> None:
        """Note a delivery, and nothing more: the caller is the connection, and many come at once."""
        if not self._came:
            self._loop.call_soon(self._sort)
        self._came.append(delivery)

    def drop_waiting(self) -> None:
        """Forget all that has not begun; from now on nothing begins."""
        self._sort()
        for (consumer, queue), count in _by_label(self._dispatcher.drop_waiting()).items():
            self._metrics.settled(consumer, queue, STOPPED, count)

    def _sort(self) -> None:
        came, self._came = self._came, []
        for queue, count in Counter(delivery.queue for delivery in came).items():
            self._metrics.received(queue, count)
        if not self._dispatcher.count:
            self._progress.moved()  # until now there was nothing to do
        for delivery in came:
            try:
                arrival = arrived(
                    delivery,
                    self._name,
                    self._registry,
                    self._missing_id,
                    self._trust,
                    self._encryption,
                    self._limits,
                )
                self._put(arrival)
            except BaseException as error:  # noqa: BLE001 - one message must not cost the others that came with it
                self._metrics.settled(self._name, delivery.queue, STOPPED)
                self._give_back_soon([delivery])
                self._fault(error)

    def _put(self, arrival: Arrival) -> None:
        """Have it handled; where its line cannot be found, it ends like any other that cannot be handled."""
        queue = arrival.delivery.queue
        try:
            line = self._line(queue, arrival.handler)
        except Exception as error:  # noqa: BLE001 - a fault of ours, which concerns this message alone
            arrival.task, arrival.handler, arrival.alone = None, None, True
            arrival.refused = Failed(error, "internal_error")
            line = self._line(queue, None)
        self._dispatcher.put(line, arrival)

    def _line(self, queue: str, handler: Handler | None) -> Line[Arrival]:
        key = (queue, handler.type if handler is not None else "")
        line = self._lines.get(key)
        if line is None:
            pace = Pace(handler.group, timed=not handler.takes_lists) if handler is not None else Pace(1)
            line = self._lines[key] = Line(pace)
            self._dispatcher.add(line)
        return line

    def _give_back(self, arrivals: list[Arrival]) -> None:
        self._give_back_soon([arrival.delivery for arrival in arrivals])

    def _give_back_soon(self, deliveries: list[Delivery]) -> None:
        """Have these delivered again, not at once: what fails each time would turn in a circle."""

        def give_back() -> None:
            for delivery in deliveries:
                delivery.give_back()

        self._loop.call_later(GIVE_BACK_SECONDS, give_back)

    async def _one(self, arrival: Arrival, line: Line[Arrival], waits: Callable[[], None]) -> None:
        try:
            outcome = await self._worker.handle(arrival, waits)
        finally:
            self._progress.moved()
        if isinstance(outcome, Duplicate):
            line.pace.went_well(1, None)
        elif isinstance(outcome, Handled) and outcome.attempts == 1:
            line.pace.went_well(1, arrival.task.took if arrival.task is not None else None)

    async def _many(self, arrivals: list[Arrival], line: Line[Arrival]) -> list[Arrival]:
        try:
            return await self._together.handle(arrivals, line.pace)
        finally:
            self._progress.moved()


def _by_label(arrivals: Iterable[Arrival]) -> Counter[tuple[str, str]]:
    return Counter((arrival.consumer, arrival.delivery.queue) for arrival in arrivals)
