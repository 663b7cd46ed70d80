"""Tries statements of ours again where other transactions are in the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from relmsg.db.failures import is_contention
from relmsg.retry import full_jitter

T = TypeVar("T")

BASE_SECONDS, CAP_SECONDS = 0.02, 1.0
LASTING_SECONDS = 10.0


async def past_contention(
    work: Callable[[], Awaitable[T]],
    *,
    seconds: float = LASTING_SECONDS,
    chance: Callable[[], float] = random.random,
) -> T:
    """Do the work, and again with backoff and full jitter while other transactions are in the way.

    The work must be a transaction of its own, which PostgreSQL has rolled back where it failed so.

    :raises Exception: what the work raised, if that is not contention or has lasted for so many seconds.
    """
    loop = asyncio.get_running_loop()
    until, met = loop.time() + seconds, 0
    while True:
        try:
            return await work()
        except Exception as error:
            met += 1
            if not is_contention(error) or loop.time() >= until:
                raise
        await asyncio.sleep(full_jitter(met, BASE_SECONDS, CAP_SECONDS, chance))
