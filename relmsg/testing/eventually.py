"""Waiting in tests for what must become true, instead of sleeping for what may be long enough."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")


@overload
async def eventually(assertion: Callable[[], Awaitable[T]], *, within: float = 10.0, every: float = 0.02) -> T: ...
@overload
async def eventually(assertion: Callable[[], T], *, within: float = 10.0, every: float = 0.02) -> T: ...
async def eventually(
    assertion: Callable[[], T] | Callable[[], Awaitable[T]], *, within: float = 10.0, every: float = 0.02
) -> T:
    """Call ``assertion`` (a function or a coroutine function) until it stops raising AssertionError; what it returned.

    It is tried at once, then every ``every`` seconds, and a last time at the deadline ``within`` seconds from now.
    Exceptions other than AssertionError end the waiting at once: they are mistakes, not "not yet".

    :raises AssertionError: the last one, at the deadline; also if one call is still running ``every`` seconds past it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    last: AssertionError | None = None
    while True:
        is_last = loop.time() >= deadline
        try:
            async with asyncio.timeout_at(max(deadline, loop.time()) + every) as limit:
                result = assertion()
                return cast("T", await result if inspect.isawaitable(result) else result)
        except AssertionError as error:
            last = error
        except TimeoutError:
            if not limit.expired():
                raise
            raise last or AssertionError(f"the assertion did not come to an end within {within:g} s") from None
        if is_last:
            raise last
        await asyncio.sleep(max(0.0, min(every, deadline - loop.time())))
