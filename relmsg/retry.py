"""When to try again, and when to stop. Pure: no clock, no sleeping, chance is injected."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from relmsg.errors import UsageError
from relmsg.exceptions import attribute, causes, members


def full_jitter(attempt: int, base: float, cap: float, chance: Callable[[], float] = random.random) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 1): anything up to ``min(cap, base * 2**(n-1))``.

    Full jitter spreads the retries of many clients most evenly (AWS Architecture Blog, "Exponential Backoff and
    Jitter", 2015).
    """
    return chance() * min(cap, base * 2.0 ** min(attempt - 1, 60))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a handler is tried inside the consumer before its message goes to the error exchange.

    ``attempts`` counts all tries, the first included. Between two of them stands an exponential backoff with full
    jitter: at most ``base`` seconds after the first, doubling up to ``cap``. No further attempt starts once ``budget``
    seconds have passed since the first one began: while a message is retried it takes a place in the prefetch window.

    An exception is retried if it is one of ``on`` and neither it nor anything it came from is one of ``never``. An
    ``ExceptionGroup`` counts as each of its members. An exception that says ``retryable = False`` of itself, as all of
    relmsg's do, is never retried. The whole transaction is tried again, never a part.

    :raises UsageError: for a policy that could never work.
    """

    attempts: int = 3
    base: float = 0.1
    cap: float = 5.0
    budget: float = 30.0
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UsageError("Retry(attempts=…) counts the first try as well: give 1 or more")
        if self.base < 0 or self.cap < 0 or self.budget < 0:
            raise UsageError("Retry: base, cap and budget are seconds and cannot be negative")

    def delay(
        self,
        attempt: int,
        error: BaseException,
        elapsed: float,
        chance: Callable[[], float] = random.random,
    ) -> float | None:
        """Seconds until the next attempt, or None to give up, after attempt number ``attempt`` (from 1) failed."""
        if attempt >= self.attempts or not self.retries(error):
            return None
        wait = full_jitter(attempt, self.base, self.cap, chance)
        return wait if elapsed + wait <= self.budget else None

    def retries(self, error: BaseException) -> bool:
        """Whether this policy ever tries again after ``error``."""
        if self.never and any(isinstance(each, self.never) for each in causes(error)):
            return False
        alike = members(error)
        if any(attribute(each, "retryable") is False for each in alike):
            return False
        return any(isinstance(each, self.on) for each in alike)
