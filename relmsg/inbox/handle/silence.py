"""Measures how long the database has been silent while a handler ran: that time is not the handler's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

SLOW_SECONDS = 0.5  # an answer that takes longer than this was held back
PERIOD_SECONDS = 1.0

Ask = Callable[[], Awaitable[bool]]
"""Asks the database for anything, without a limit of its own; whether it has answered."""

_stopping: set[asyncio.Task[None]] = set()  # a task nobody refers to may be collected


class Silence:
    """Asks the database again and again, beside a handler that runs for long, and adds up what was not answered soon.

    Each question has one answer to wait for. Those that take more than half a second, and those that fail, are silence.
    """

    __slots__ = ("_answered", "_ask", "_before", "_began", "_loop", "_now", "_task")

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None  # when the question was put that has no answer yet
        self._before = 0.0  # the silence that is over
        self._answered = float("-inf")  # when the last question that was answered had been put
        self._now = asyncio.Event()
        self._task = self._loop.create_task(self._run())

    def seconds(self) -> float:
        """How long the database has been silent until now, in all."""
        return self._before + self.lasting()

    def lasting(self) -> float:
        """For how long it has been silent at this moment; 0 where it may yet answer in time."""
        took = 0.0 if self._began is None else self._loop.time() - self._began
        return took if took > SLOW_SECONDS else 0.0

    def is_answering(self, since: float) -> bool:
        """Whether a question has been answered that was put at this time or later."""
        return self._answered >= since

    def ask_now(self) -> None:
        """Put the next question at once."""
        self._now.set()

    def stop(self) -> None:
        """Ask no more."""
        self._task.cancel()
        _stopping.add(self._task)
        self._task.add_done_callback(_stopping.discard)

    async def _run(self) -> None:
        while True:
            began = self._loop.time()
            if self._began is None:
                self._began = began
            if await self._ask():
                self._before += self.lasting()
                self._began, self._answered = None, began
            else:
                await asyncio.sleep(SLOW_SECONDS / 2)
                continue
            self._now.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._now.wait()
