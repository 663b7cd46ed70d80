"""An inbox inside an application: it runs as long as a block of code does, and the block as long as it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from relmsg.clock import Clock
from relmsg.errors import InboxEnded, ServiceAway
from relmsg.exceptions import text_of
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)

FIRST_BACKOFF, MOST_BACKOFF = 0.2, 5.0

I = TypeVar("I")  # noqa: E741 - the inbox
Run = Callable[[asyncio.Event, Callable[[], None]], Awaitable[None]]
"""``Inbox.run`` with all but its stop and its ``started``."""


class Tell(Protocol):
    """Is told why the inbox does not consume: it waits for a service, or it has ended."""

    def __call__(self, *, waits: str | None = None, ended: str | None = None) -> None: ...


class Running(Generic[I]):
    """Made by ``Inbox.running``: entering returns once all queues are consumed, leaving drains.

    If the inbox ends by itself meanwhile, the task inside of the block is cancelled, and the block is left with what
    ended the inbox.
    """

    def __init__(
        self,
        inbox: I,
        name: str,
        run: Run,
        *,
        patience: float,
        tell: Tell,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._name = name
        self._run = run
        self._patience = patience
        self._tell = tell
        self._clock = clock
        self._chance = chance
        self._stop = asyncio.Event()
        self._task: asyncio.Future[None] | None = None
        self._block: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        self._interrupted = False

    async def __aenter__(self) -> I:
        self._block = asyncio.current_task()
        assert self._block is not None
        self._cancelled_before = self._block.cancelling()
        begun, attempt = self._clock.monotonic(), 0
        while True:
            try:
                self._task = await self._started()
            except ServiceAway as error:
                attempt += 1
                wait = full_jitter(attempt, FIRST_BACKOFF, MOST_BACKOFF, self._chance)
                if self._clock.monotonic() - begun + wait > self._patience:
                    self._tell(ended=text_of(error))
                    log.error("%s: does not consume: %s", self._name, text_of(error))
                    raise
                self._tell(waits=f"waits for the services: {text_of(error)}")
                if attempt == 1:
                    log.warning("%s: waits for the services: %s", self._name, text_of(error))
                await self._clock.sleep(wait)
            except Exception as error:
                self._tell(ended=text_of(error))
                log.error("%s: does not consume: %s", self._name, text_of(error))
                raise
            else:
                break
        self._tell()
        if attempt:
            log.info("%s: the services answer after %.0f s", self._name, self._clock.monotonic() - begun)
        self._task.add_done_callback(self._ended)
        return self._inbox

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        assert self._block is not None
        self._task.remove_done_callback(self._ended)
        self._stop.set()
        if self._interrupted and self._block.uncancel() > self._cancelled_before:
            return  # it was cancelled by somebody else as well, who awaits that
        if self._interrupted and kind not in (None, asyncio.CancelledError):
            return  # the block is left by an error of its own; what ended the inbox is in the log
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._task.cancelled() or not self._interrupted:
                raise
        if self._interrupted:
            raise InboxEnded(f"inbox {self._name!r} ended without being asked to")

    async def _started(self) -> asyncio.Future[None]:
        """The run, once all queues are consumed.

        :raises Exception: what ended it before.
        """
        started = asyncio.Event()
        run = asyncio.ensure_future(self._run(self._stop, started.set))
        waiting = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({run, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            run.cancel()
            await asyncio.wait({run})
            if not run.cancelled():
                run.exception()  # looked at: the cancellation is what counts
            raise
        finally:
            waiting.cancel()
        if run.done():
            await run
            raise InboxEnded(f"inbox {self._name!r} ended before it consumed")
        return run

    def _ended(self, run: asyncio.Future[None]) -> None:
        assert self._block is not None
        error = None if run.cancelled() else run.exception()
        reason = text_of(error) if error is not None else "nobody asked it to"
        self._tell(ended=reason)
        log.critical("%s: no longer consumes, and ends the block it runs in: %s", self._name, reason)
        self._interrupted = True
        self._block.cancel(f"inbox {self._name!r} ended")
