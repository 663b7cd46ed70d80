"""Whether a relay gets anywhere, as its probes tell it."""

from __future__ import annotations

from relmsg.broker.connection import Connection
from relmsg.clock import Clock
from relmsg.outage import Outage
from relmsg.outbox.holds import Holds
from relmsg.outbox.pending import Pending

STUCK_SECONDS = 60.0


class Progress:
    """When the last publish was confirmed, and when the last one ended in any way."""

    def __init__(self, now: float, *, stall_seconds: float = 30.0) -> None:
        self._stall = stall_seconds
        self._moved_at = self._answered_at = now
        self.backlog = 0

    def moved(self, now: float) -> None:
        """A message was confirmed, or nothing is due."""
        self._moved_at = self._answered_at = now

    def answered(self, now: float) -> None:
        """A publish has ended: with an answer, or because the broker did not take it."""
        self._answered_at = now

    def stalled(self, now: float) -> bool:
        """Nothing was confirmed for the stall time."""
        return now - self._moved_at > self._stall

    def stuck_seconds(self, now: float) -> float:
        """For how long no publish has ended."""
        return now - self._answered_at


class Health:
    """What the probes of a relay answer. Due is what is committed and waits for no missing route.

    ``live`` and ``ready`` may be asked from any thread; ``turned`` is called by the relay's loop.
    """

    def __init__(
        self,
        pending: Pending,
        holds: Holds,
        progress: Progress,
        *,
        database: Outage,
        broker: Outage,
        confirm_deadline: float,
        clock: Clock,
    ) -> None:
        self._pending = pending
        self._holds = holds
        self._progress = progress
        self._database = database
        self._broker = broker
        self._stuck = max(STUCK_SECONDS, 2 * confirm_deadline)
        self._clock = clock
        self._turned_at = clock.monotonic()
        self._unreachable: str | None = None

    def turned(self, publishing: Connection | None = None) -> None:
        """The loop turns; with its connection, also note how that is, and whether anything is due."""
        now = self._turned_at = self._clock.monotonic()
        if not self._is_due:
            self._progress.moved(now)
        if publishing is not None:
            self._unreachable = "there is no connection to RabbitMQ" if not publishing.is_up else None
            if publishing.blocked:
                self._unreachable = "RabbitMQ has blocked publishing"

    def live(self) -> str | None:
        """None while the relay works, otherwise why it should be restarted."""
        now = self._clock.monotonic()
        if (still := now - self._turned_at) >= STUCK_SECONDS:
            return f"the relay's loop has not turned for {still:.0f} s"
        stuck = self._progress.stuck_seconds(now)
        if self._in_memory and stuck >= self._stuck and self._database.reason is None and self._away is None:
            return f"messages are due and nothing was sent for {stuck:.0f} s, though no service is away"
        return None

    def ready(self) -> str | None:
        """None while what is due moves, otherwise what is wrong."""
        if self._database.reason is not None:
            return self._database.reason
        if self._is_due and self._progress.stalled(self._clock.monotonic()):
            waiting = max(self._progress.backlog, self._in_memory)
            return f"{waiting} messages wait and none gets through. {self._away or ''}".strip()
        return None

    @property
    def _in_memory(self) -> int:
        """How many messages were read and are not settled, without the probes of held destinations."""
        return max(0, len(self._pending) - len(self._holds))

    @property
    def _is_due(self) -> bool:
        """Whether there is anything to send. Rows that are only in the table count while nothing is held: there they
        are not told apart from those that wait for a route."""
        return self._in_memory > 0 or (self._progress.backlog > 0 and not len(self._holds))

    @property
    def _away(self) -> str | None:
        return self._unreachable or self._broker.reason
