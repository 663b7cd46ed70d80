"""Runs other people's code in a context of its own, and makes a value of all that it raises."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any


@types.coroutine
def isolated(work: Coroutine[Any, Any, object], context: Context) -> Generator[Any, Any, BaseException | None]:
    """Await ``work`` in this task but in that context; what it raised, or None.

    Context variables that ``work`` sets are seen by nobody else. All that comes out of it is returned, also what is no
    ``Exception``: a ``GeneratorExit`` or a Rust extension's panic must not end a worker. A cancellation of this task
    reaches ``work`` and is returned as it comes out of it; the caller asks ``is_stop``.
    """
    resume, value = work.send, None
    while True:
        try:
            awaited = context.run(resume, value)
        except StopIteration:
            return None
        except BaseException as error:  # noqa: BLE001
            return error
        try:
            value = yield awaited
            resume = work.send
        except GeneratorExit:  # from outside: this coroutine is being closed
            context.run(work.close)
            raise
        except BaseException as error:  # noqa: BLE001
            resume, value = work.throw, error


def is_stop(error: BaseException) -> bool:
    """Whether an exception that was caught around an ``await`` is meant for this task, and has to be raised again: its
    cancellation, or its end with the event loop."""
    if isinstance(error, GeneratorExit):
        return True
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
