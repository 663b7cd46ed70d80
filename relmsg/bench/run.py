"""One run: what is measured, how often, in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from relmsg.bench.consuming import Way, consuming
from relmsg.bench.latency import latency
from relmsg.bench.limits import Limit
from relmsg.bench.measure import Found, Progress
from relmsg.bench.place import Place
from relmsg.bench.publishing import publishing
from relmsg.bench.relaying import relaying
from relmsg.bench.services import round_trips
from relmsg.bench.transactions import many, transactions

CONCURRENT = (1, 8)


class Part(StrEnum):
    """What can be measured by itself."""

    PUBLISHING = "publishing"
    OUTBOX = "outbox"
    RELAY = "relay"
    CONSUMER = "consumer"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much each row does: the slow ones do less, so that all take about as long."""

    messages: int
    parts: tuple[Part, ...] = tuple(Part)

    @property
    def samples(self) -> int:
        """For each round trip."""
        return _between(10, self.messages // 200, 100)

    @property
    def single(self) -> int:
        """Where each message has a transaction of its own, or each transaction a message."""
        return max(1, self.messages // 4)

    @property
    def alone(self) -> int:
        """Where only one transaction runs at a time."""
        return max(1, self.messages // 20)

    @property
    def paced(self) -> int:
        """At 50 a second."""
        return _between(10, self.messages // 50, 500)

    @property
    def total(self) -> int:
        """Messages the whole run writes, publishes or both."""
        sums = {
            Part.PUBLISHING: self.messages,
            Part.OUTBOX: self.alone + self.single + self.messages,
            Part.RELAY: self.messages,
            Part.CONSUMER: self.single + 2 * self.messages,
            Part.LATENCY: 2 * self.paced,
        }
        return self.samples + sum(sums[part] for part in self.parts)


async def run(place: Place, plan: Plan, progress: Progress) -> AsyncIterator[Found]:
    """The rows, each as it is found; the round trips first, for every verdict is over them."""
    trips, found = await round_trips(place, plan.samples, progress)
    for row in found:
        yield row
    ceiling = None
    if Part.PUBLISHING in plan.parts:
        row = await publishing(place, plan.messages, trips, progress)
        if row.verdict is not None and row.verdict.limit is Limit.BROKER:
            ceiling = row.rate
        yield row
    if Part.OUTBOX in plan.parts:
        for lanes, count in zip(CONCURRENT, (plan.alone, plan.single), strict=True):
            for row in await transactions(place, count, lanes, trips, progress):
                yield row
        yield await many(place, plan.messages, trips, progress)
    if Part.RELAY in plan.parts:
        yield await relaying(place, plan.messages, trips, ceiling, progress)
    if Part.CONSUMER in plan.parts:
        for way in Way:
            count = plan.single if way is Way.SINGLE else plan.messages
            yield await consuming(place, way, count, trips, progress)
    if Part.LATENCY in plan.parts:
        for hint in (False, True):
            yield await latency(place, plan.paced, trips, progress, hint=hint)


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
