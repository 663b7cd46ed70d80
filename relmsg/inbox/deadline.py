"""How long a handler may take, told by one timer for all handlers of a group."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """Stops handlers that take longer than so many seconds; None: they may take as long as they like.

    For handlers that run one after another in the task which has entered this. ``asyncio.timeout`` would do, but makes
    a timer for each and throws it away, which is a twelfth of what a message costs in a group. Here the timer of the
    first one stays; when it goes off in the turn of a later one, it is set to the end of that.
    """

    __slots__ = ("_ends", "_loop", "_seconds", "_stopped", "_task", "_timer")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._ends: float | None = None
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None

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
            self._ends = self._loop.time() + self._seconds
            if self._timer is None:
                self._timer = self._loop.call_at(self._ends, self._look)

    def end(self) -> bool:
        """It is over, in whichever way; whether it was told to stop, by a CancelledError that is nobody else's."""
        self._ends = None
        stopped, self._stopped = self._stopped, False
        if stopped and self._task is not None:
            self._task.uncancel()
        return stopped

    def _look(self) -> None:
        self._timer = None
        if self._ends is None:
            return
        if self._loop.time() < self._ends:
            self._timer = self._loop.call_at(self._ends, self._look)
        elif self._task is not None:
            self._ends = None
            self._stopped = True
            self._task.cancel()
