"""How long a handler may take, told by one timer for all handlers of a group."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from relmsg.inbox.handle.silence import SLOW_SECONDS, Ask, Silence

WATCHED_PART = 0.25  # of its time a handler has to itself; then the database is asked beside it
GIVEN_UP_SECONDS = 2.0


class Deadline:
    """Stops handlers that take longer than so many seconds; None: they may take as long as they like.

    For handlers that run one after another in the task which has entered this. ``asyncio.timeout`` would do, but makes
    a timer for each and throws it away, which is a twelfth of what a message costs in a group. Here the timer of the
    first one stays; when it goes off in the turn of a later one, it is set to the end of that.

    Time in which the database answers nobody is not the handler's. With ``ask``, a handler that has used a quarter of
    its time has the database asked beside it; what that does not answer soon is added to its time. It is stopped only
    after an answer to what was asked at its end, or once the database has been silent for two seconds then.
    """

    __slots__ = (
        "_ask",
        "_began",
        "_ends",
        "_given",
        "_loop",
        "_seconds",
        "_silence",
        "_stopped",
        "_task",
        "_timer",
        "was_silent",
    )

    def __init__(self, seconds: float | None, ask: Ask | None = None) -> None:
        self._seconds = seconds
        self._ask = ask
        self._began = 0.0
        self._given = 0.0
        self._ends: float | None = None
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._silence: Silence | None = None
        self.was_silent = False
        """Whether the database was silent while the last handler ran; of one that was stopped, whether it still was."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def begin(self) -> None:
        """A handler begins, in this task."""
        if self._seconds is not None:
            self._began = self._loop.time()
            self._ends = self._began + self._seconds
            if self._timer is None:
                self._timer = self._loop.call_at(self._next_look(self._began), self._look)

    def end(self) -> bool:
        """It is over, in whichever way; whether it was told to stop, by a CancelledError that is nobody else's."""
        self._ends = None
        self.was_silent = False
        if self._silence is not None:
            self.was_silent = (self._silence.lasting() if self._stopped else self._silence.seconds()) > 0
            self._silence.stop()
            self._silence = None
            self._given = 0.0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        stopped, self._stopped = self._stopped, False
        if stopped and self._task is not None:
            self._task.uncancel()
        return stopped

    def _next_look(self, now: float) -> float:
        assert self._ends is not None
        return self._watched_from if self._ask is not None and now < self._watched_from else self._ends

    @property
    def _watched_from(self) -> float:
        return self._began + WATCHED_PART * (self._seconds or 0.0)

    def _look(self) -> None:
        self._timer = None
        if self._ends is None:
            return
        now = self._loop.time()
        if now < self._ends:
            if self._ask is not None and self._silence is None and now >= self._watched_from:
                self._silence = Silence(self._ask)
            self._timer = self._loop.call_at(self._next_look(now), self._look)
        elif (later := self._later(now)) is not None:
            self._timer = self._loop.call_at(later, self._look)
        elif self._task is not None:
            self._ends = None
            self._stopped = True
            self._task.cancel()

    def _later(self, now: float) -> float | None:
        """When to look again, because the handler's time may not be over; None if it is."""
        if self._ask is None or self._ends is None:
            return None
        if self._silence is None:  # the loop had no time to look before
            self._silence = Silence(self._ask)
        silence = self._silence
        if silence.lasting():
            return None if now - self._ends > GIVEN_UP_SECONDS else now + SLOW_SECONDS / 5
        more = silence.seconds() - self._given
        if more > 0:
            self._given += more
            self._ends += more
            return max(now, self._ends)
        if silence.is_answering(self._ends):
            return None
        silence.ask_now()
        return now + SLOW_SECONDS / 50
