"""A bar on stderr for what takes longer than a second, where somebody looks at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

AFTER_SECONDS = 1.0


class Bar:
    """How far something is. Nothing is shown in the first second, nor where stderr is no terminal."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._begun = time.monotonic()
        self._tasks: dict[str, TaskID] = {}

    def tell(self, what: str, share: float) -> None:
        """So much of it is done, from 0 to 1. A new text begins a new line."""
        if self._bar is None or time.monotonic() - self._begun < AFTER_SECONDS:
            return
        if what not in self._tasks:
            self._bar.start()
            self._tasks[what] = self._bar.add_task(what, total=1.0)
        self._bar.update(self._tasks[what], completed=share)


@contextmanager
def bar() -> Iterator[Bar]:
    """A bar that goes away at the end, so that what is printed then stands alone."""
    if not sys.stderr.isatty():
        yield Bar(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        yield Bar(shown)
    finally:
        shown.stop()
