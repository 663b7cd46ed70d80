"""From deliveries to tasks: units of work begin as soon as there is a place for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Generic, TypeVar

from relmsg.inbox.lines import Line, Lines, Unit, Waiting
from relmsg.inbox.outcome import TaskCancelled

T = TypeVar("T", bound=Waiting)


class Dispatcher(Generic[T]):
    """Runs ``one`` for a message alone and ``many`` for a group, at most ``concurrency`` of them at a time.

    ``one`` is given a function that it may call when it only waits from now on; its place is then free, its key is not.
    ``many`` returns the messages that have to be handled again. Both handle their own errors. An exception that comes
    out of them, whatever its kind, leaves messages without an outcome: they go to ``unfinished``, and it is told to
    ``fault``. So is a cancellation, unless it comes after ``drop_waiting``, from whoever drains.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        one: Callable[[T, Line[T], Callable[[], None]], Awaitable[object]],
        many: Callable[[list[T], Line[T]], Awaitable[list[T]]],
        fault: Callable[[BaseException], None],
        unfinished: Callable[[list[T]], None] = lambda _: None,
    ) -> None:
        self.tasks: set[asyncio.Task[list[T] | BaseException]] = (
            set()
        )  # a task nobody refers to may be collected (reliability R1)
        self._one = one
        self._many = many
        self._fault = fault
        self._unfinished = unfinished
        self._over = False
        self._lines: Lines[T] = Lines(concurrency)
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # what one message's task leaves behind, the next must not find
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None

    def add(self, line: Line[T]) -> None:
        """A line more."""
        self._lines.add(line)

    def put(self, line: Line[T], item: T) -> None:
        """Take a message; returns at once. What comes in one turn of the event loop can go into one group."""
        self._lines.put(line, item)
        if self._soon is None:
            self._fill_soon()

    @property
    def count(self) -> int:
        """How many messages have come and have not ended."""
        return self._lines.count

    def drop_waiting(self) -> list[T]:
        """Forget all that has not begun, and tell what it was."""
        self._over = True
        return self._lines.clear()

    def _fill(self) -> None:
        self._soon = None
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - in a callback of the event loop nobody would hear of it
            self._fault(error)

    def _begin(self) -> None:
        now = self._loop.time()
        while (unit := self._lines.next(now)) is not None:
            task = self._loop.create_task(self._run(unit), context=self._context.copy())
            self.tasks.add(task)
            task.add_done_callback(partial(self._ended, unit))
        due = self._lines.due()
        if due is not None and (self._later is None or self._later.cancelled() or self._later.when() > due):
            self._later = self._loop.call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        self._later = None
        self._fill()

    async def _run(self, unit: Unit[T]) -> list[T] | BaseException:
        """What has to be handled again, or why there is no outcome."""
        try:
            if len(unit.items) == 1:
                await self._one(unit.items[0], unit.line, lambda: self._vacate(unit))
                return []
            return await self._many(unit.items, unit.line)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt and SystemExit would end the event loop
            return error

    def _ended(self, unit: Unit[T], task: asyncio.Task[list[T] | BaseException]) -> None:
        """The task of a unit is over. Here, and not in the task: one that is cancelled before it begins never runs."""
        self.tasks.discard(task)
        back: list[T] | BaseException = TaskCancelled() if task.cancelled() else task.result()
        if isinstance(back, BaseException):
            error, back = back, []
            if not self._over:
                self._unfinished(unit.items)
                self._fault(error)
        self._lines.end(unit, back)
        self._fill()

    def _vacate(self, unit: Unit[T]) -> None:
        self._lines.vacate(unit)
        self._fill_soon()

    def _fill_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._fill)
