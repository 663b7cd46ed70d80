"""Where a task may be interrupted without loss."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from relmsg.clock import Clock
from relmsg.inbox.consume.progress import Progress


class Rest:
    """Marks the waits in which a task holds nothing that would be lost: a backoff, a free slot, a shut gate.

    When the process is to stop, these waits end at once, and no new one begins; everything else may finish.
    ``progress`` is told of the waits that have a known length.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self._resting: set[asyncio.Task[object]] = set()
        self._over = False

    @property
    def is_over(self) -> bool:
        """Whether the process is to stop, so that no wait begins any more."""
        return self._over

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait inside; raises CancelledError once rest is over."""
        task = asyncio.current_task()
        if self._over or task is None:
            raise asyncio.CancelledError("the consumer is stopping")
        self._resting.add(task)
        try:
            yield
        finally:
            self._resting.discard(task)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait for so many seconds. :raises CancelledError: rest is over."""
        with self(), self.progress.expected(seconds):
            await clock.sleep(seconds)

    def end(self) -> None:
        """Interrupt every wait, now and from now on."""
        self._over = True
        for task in self._resting:
            task.cancel("the consumer is stopping")
