"""One call of a handler: whatever it does, it ends as a value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, NamedTuple

from relmsg.broker.answer import really_cancelled
from relmsg.inbox.deadline import Deadline
from relmsg.inbox.handler import Handler
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import HandlerCancelled, HandlerTimeout, readable
from relmsg.inbox.transaction import HandlersTurn
from relmsg.runtime.isolated import isolated


async def called(
    handler: Handler,
    work: Coroutine[Any, Any, object],
    context: Context,
    turn: HandlersTurn,
    deadline: Deadline,
    metrics: Metrics,
) -> BaseException | None:
    """Let the handler do its ``work`` in ``context``; what it raised, or what makes its work impossible to commit.

    Its time, which ends at the deadline, is that of its own code and of writing what it left in the session.
    """

    stopped = False
    began = time.perf_counter()
    deadline.begin()
    try:
        error = await isolated(work, context)
    finally:
        stopped = deadline.end()
        metrics.took(handler, time.perf_counter() - began)
    if error is None and not stopped:
        return None
    if error is not None:
        error = readable(error)
    if isinstance(error, asyncio.CancelledError) and really_cancelled():
        raise error
    if stopped:  # also where the handler swallowed its cancellation and came to an end: it was told to stop
        return HandlerTimeout(f"the handler took longer than its timeout of {handler.timeout:g} s")
    if isinstance(error, asyncio.CancelledError):
        cancelled = HandlerCancelled()
        cancelled.__cause__ = error
        return cancelled
    return None if error is None else turn.explained(error)


async def worked(call: Callable[..., Awaitable[object]], turn: HandlersTurn, *given: Any) -> None:
    """The work of a handler: call it with what it is given, and write what it left in the session."""
    await call(*given)
    if not turn.is_untouched():
        await turn.check()


class Took(NamedTuple):
    """The seconds of a transaction, by the clock."""

    handlers: float
    ours: float
    """What the inbox row and the commit took, and one more message in the group would not."""
