"""One call of a handler: whatever it does, it ends as a value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import NamedTuple

from relmsg.broker.answer import really_cancelled
from relmsg.inbox.deadline import Deadline
from relmsg.inbox.handler import Handler
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import HandlerCancelled, HandlerEndedTransaction, HandlerTimeout
from relmsg.inbox.transaction import HandlersTurn


async def called(
    handler: Handler, work: Awaitable[object], turn: HandlersTurn, deadline: Deadline, metrics: Metrics
) -> BaseException | None:
    """Let the handler do its work; what it raised, or what makes its work impossible to commit."""
    stopped = False
    began = time.perf_counter()
    deadline.begin()
    try:
        try:
            await work
        finally:
            stopped = deadline.end()
        if not stopped:
            if not turn.is_untouched():
                await turn.check()
            return None
    except asyncio.CancelledError as error:
        if really_cancelled():
            raise
        if not stopped:
            cancelled = HandlerCancelled()
            cancelled.__cause__ = error
            return cancelled
    except (Exception, SystemExit) as error:  # noqa: BLE001 - all that a handler may raise is a value from here on
        # SystemExit as well: a library that calls sys.exit() must not end the worker, and without a word at that.
        if not stopped:
            return HandlerEndedTransaction() if turn.was_ended_unseen() else error
    finally:
        metrics.took(handler, time.perf_counter() - began)
    # Also where the handler swallowed its cancellation and came to an end: it was told to stop.
    return HandlerTimeout(f"the handler took longer than its timeout of {handler.timeout:g} s")


class Took(NamedTuple):
    """The seconds of a transaction, by the clock."""

    handlers: float
    ours: float
    """What the inbox row and the commit took, and one more message in the group would not."""
