"""Logs which destinations wait: one line a destination and minute at most, and one for all that are too many."""

from __future__ import annotations

import logging

from relmsg.clock import Clock
from relmsg.outbox.holds import MOST_HOLDS, Hold
from relmsg.outbox.row import Destination
from relmsg.outbox.summary import MINUTE, Summary

log = logging.getLogger(__name__)


class HoldLog:
    """Tells of destinations that wait, and of those that do not any more.

    A destination that goes on waiting is told again after a minute, whatever its probes meet.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told_at: dict[Destination, float] = {}
        self._named: set[Destination] = set()
        self._waiting = Summary("destinations lead nowhere for now; `relmsg outbox status` shows them")
        self._released = Summary("destinations are released")

    def waits(self, hold: Hold) -> None:
        """A destination waits, or goes on waiting."""
        now = self._clock.monotonic()
        if now - self._told_at.get(hold.destination, -MINUTE) < MINUTE:
            return
        self._told_at[hold.destination] = now
        if self._waiting.may_tell(now):
            self._named.add(hold.destination)
            log.warning("%s waits %.1f s: %s", hold.destination, hold.until - now, hold.reason)

    def released(self, destination: Destination) -> None:
        """A destination leads somewhere again; told where it was told that it waits."""
        if destination in self._named:
            self._named.discard(destination)
            if self._released.may_tell(self._clock.monotonic()):
                log.info("%s is released", destination)

    def tell(self) -> None:
        """Log how many destinations there were beside those that were named; call it now and then."""
        now = self._clock.monotonic()
        if (told := self._waiting.told(now)) is not None:
            log.warning("%s", told)
        if (told := self._released.told(now)) is not None:
            log.info("%s", told)
        if len(self._told_at) > 2 * MOST_HOLDS:
            self._told_at = {key: at for key, at in self._told_at.items() if now - at < MINUTE}
            self._named.intersection_update(self._told_at)
