"""Destinations that lead nowhere for now: who waits for them, until when, and why. Pure; time and chance come in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from relmsg.outbox.row import Destination, Row
from relmsg.retry import full_jitter

FIRST_SECONDS = 1.0
MOST_SECONDS = 60.0
MOST_HOLDS = 10_000  # beyond this, routing keys of an exchange are held together: the list goes into every read
WHOLE_EXCHANGE = "the whole exchange waits: "  # begins the reason on the probe row of a hold without a routing key


@dataclass(slots=True)
class Hold:
    """One destination that waits. Its ``row`` is sent alone, now and then, to find out whether it leads somewhere."""

    destination: Destination
    row: Row
    reason: str
    until: float
    failures: int = 1


class Holds:
    """All destinations that wait.

    The wait doubles from 1 s to 60 s. It is jittered downwards by half at most: a route that is back should be found
    soon, and the probes of many relays should not come together.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.version = 0  # changes with the set of destinations: a read that began before was told other ones
        self._holds: dict[Destination, Hold] = {}
        self._by_row: dict[int, Hold] = {}
        self._chance = chance

    def __len__(self) -> int:
        return len(self._holds)

    def __iter__(self) -> Iterator[Hold]:
        return iter(list(self._holds.values()))  # a copy: the probes' thread looks on while the relay goes on

    def __contains__(self, destination: Destination) -> bool:
        return destination in self._holds

    def covers(self, destination: Destination) -> bool:
        """Whether a row for this destination must wait."""
        return destination in self._holds or Destination(destination.exchange, None) in self._holds

    def put(self, destination: Destination, row: Row, reason: str, now: float) -> Hold:
        """Let a destination wait, with ``row`` as its probe; one that waits already waits longer."""
        if len(self._holds) >= MOST_HOLDS and destination not in self._holds:
            destination = Destination(destination.exchange, None)
        known = self._holds.get(destination)
        self.version += known is None
        failures = known.failures + 1 if known else 1
        probe = known.row if known else row
        wait = min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 30))
        until = now + wait / 2 + full_jitter(1, wait / 2, wait / 2, self._chance)
        hold = Hold(destination, probe, reason, until, failures)
        self._holds[destination] = self._by_row[probe.id] = hold
        return hold

    def of(self, row: Row) -> Hold | None:
        """The hold whose probe this row is."""
        hold = self._by_row.get(row.id)
        return hold if hold is not None and hold.row is row else None

    def release(self, hold: Hold) -> None:
        """The destination leads somewhere again, or its probe is gone."""
        self.version += self._holds.pop(hold.destination, None) is not None
        self._by_row.pop(hold.row.id, None)

    def due(self, now: float) -> Hold | None:
        """The hold that should be probed first, if any is due."""
        ready = [hold for hold in self._holds.values() if hold.until <= now]
        return min(ready, key=lambda hold: hold.until, default=None)

    def forget_slots(self, slots: Iterable[int]) -> list[Hold]:
        """Drop the holds whose probe belongs to a slot that is no longer ours."""
        gone = set(slots)
        lost = [hold for hold in self._holds.values() if hold.row.slot in gone]
        for hold in lost:
            self.release(hold)
        return lost
