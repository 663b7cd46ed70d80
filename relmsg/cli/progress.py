"""A bar on stderr for what takes longer than a second, where somebody looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from relmsg.clock import Clock, SystemClock

AFTER_SECONDS = 1.0


class Bar:
    """How far something is. Nothing is shown in the first second, nor where stderr is no terminal."""

    def __init__(self, bar: Progress | None, clock: Clock) -> None:
        self._bar = bar
        self._clock = clock
        self._begun = clock.monotonic()
        self._tasks: dict[str, TaskID] = {}

    def tell(self, what: str, share: float) -> None:
        """So much of it is done, from 0 to 1. A new text begins a new line."""
        if self._bar is None or self._clock.monotonic() - self._begun < AFTER_SECONDS:
            return
        if what not in self._tasks:
            self._bar.start()
            self._tasks[what] = self._bar.add_task(what, total=1.0)
        self._bar.update(self._tasks[what], completed=share)

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """To be called with how many more of ``total`` are done."""
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            self.tell(what, min(1.0, done / max(1, total)))

        return add


@contextmanager
def bar(clock: Clock | None = None, *, json: bool = False) -> Iterator[Bar]:
    """A bar that goes away at the end, so that what is printed then stands alone. With ``json`` none is shown."""
    clock = clock or SystemClock()
    if json or not sys.stderr.isatty():
        yield Bar(None, clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        yield Bar(shown, clock)
    finally:
        shown.stop()
