"""Keeps a task running in the background: one that ends by itself is noticed, and begun again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from relmsg.exceptions import text_of, type_name
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)

BASE_SECONDS, CAP_SECONDS = 0.1, 10.0
SOUND_SECONDS = 60.0  # a task that ran for so long begins again at once


class Background:
    """Runs ``work`` in a task of its own from ``start`` to ``stop``.

    The work is not to end before. Where it does, by an exception of any kind, by returning, or because somebody cancels
    tasks that are not theirs, the log says so and it begins again, after a backoff (0.1 s, doubling up to 10 s). So
    nobody waits for ever for what a task does that is gone. Both methods are called in the event loop's thread.
    """

    def __init__(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]], chance: Callable[[], float] = random.random
    ) -> None:
        self._name = name
        self._work = work
        self._chance = chance
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._stopping = False
        self._began = 0.0
        self._failures = 0

    @property
    def is_running(self) -> bool:
        """Whether the task is there at this moment, and not only about to begin again."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin; once."""
        if self._task is None and not self._stopping:
            self._begin()

    async def stop(self) -> None:
        """End the work, and wait until it has ended."""
        self._stopping = True
        if self._again is not None:
            self._again.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> None:
        self._again = None
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._task = loop.create_task(self._run(), name=self._name)
        self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            await self._work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt and SystemExit would end the event loop
            log.error("%s: ended by %s: %s; it begins again", self._name, type_name(error), text_of(error))
        else:
            log.error("%s: ended by itself; it begins again", self._name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._stopping:
            return
        if task.cancelled():
            log.error("%s: somebody has cancelled its task; it begins again", self._name)
        loop = task.get_loop()
        if loop.is_closed():
            return
        self._failures = 1 if loop.time() - self._began > SOUND_SECONDS else self._failures + 1
        delay = full_jitter(self._failures, BASE_SECONDS, CAP_SECONDS, self._chance)
        self._again = loop.call_later(delay, self._begin)
