"""Tells whether the deliveries that are here move on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from relmsg.clock import Clock, SystemClock


class Progress:
    """Notes when something moved last, and what may rightly take a while.

    Something moves when a delivery comes to its end, an attempt begins or ends, or a service that is away is tried. It
    knows nothing of the reasons why something could stand still; so it notices those nobody has thought of.

    ``standing_still`` may be asked by another thread than the one whose event loop does the work.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._moved_at = self._clock.monotonic()
        self._allowed: dict[object, float] = {}

    def moved(self) -> None:
        """Something has moved."""
        self._moved_at = self._clock.monotonic()

    def begin(self, work: object, seconds: float | None) -> None:
        """This work begins and may take so long, None: as long as it likes. It must be ended by ``end``."""
        self._moved_at = now = self._clock.monotonic()
        self._allowed[work] = float("inf") if seconds is None else now + seconds

    def end(self, work: object) -> None:
        """The work is over."""
        self._moved_at = self._clock.monotonic()
        self._allowed.pop(work, None)

    @contextmanager
    def expected(self, seconds: float | None) -> Iterator[None]:
        """What is done inside may take so long."""
        work = object()
        self.begin(work, seconds)
        try:
            yield
        finally:
            self.end(work)

    def standing_still(self) -> float:
        """For how many seconds nothing has moved; 0 while something is under way in the time that it may take."""
        now = self._clock.monotonic()
        if any(now < allowed for allowed in list(self._allowed.values())):
            return 0.0
        return now - self._moved_at
