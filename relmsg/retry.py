"""When to try again, and when to stop. Pure: no clock, no sleeping, chance is injected."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

from relmsg import arguments
from relmsg.exceptions import attribute, causes, members


def full_jitter(attempt: int, base: float, cap: float, chance: Callable[[], float] = random.random) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 1): anything up to ``min(cap, base * 2**(n-1))``.

    Full jitter spreads the retries of many clients most evenly (AWS Architecture Blog, "Exponential Backoff and
    Jitter", 2015).
    """
    return chance() * min(cap, base * 2.0 ** min(attempt - 1, 60))


MOST_ATTEMPTS: Final = 1_000_000

Seconds: TypeAlias = float | timedelta
Exceptions: TypeAlias = type[BaseException] | Collection[type[BaseException]]


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """How often a handler is tried inside the consumer before its message goes to the error exchange.

    ``attempts`` counts all tries, the first included. Between two of them stands an exponential backoff with full
    jitter: at most ``base`` seconds after the first, doubling up to ``cap``. No further attempt starts once ``budget``
    seconds have been waited between attempts: while a message is retried it takes a place in the prefetch window. What
    the attempts themselves take is not counted: it has the timeout of the handler.

    Times are seconds or a ``timedelta``; an infinite ``budget`` is none. ``on`` and ``never`` are an exception class,
    or several in a tuple or list.

    An exception is retried if it is one of ``on`` and neither it nor anything it came from is one of ``never``. An
    ``ExceptionGroup`` counts as each of its members. An exception that says ``retryable = False`` of itself, as all of
    relmsg's do, is never retried. The whole transaction is tried again, never a part.

    :raises UsageError: for a policy that could never work.
    """

    attempts: int
    base: float
    cap: float
    budget: float
    on: tuple[type[BaseException], ...]
    never: tuple[type[BaseException], ...]

    def __init__(
        self,
        *,
        attempts: int = 3,
        base: Seconds = 0.1,
        cap: Seconds = 5.0,
        budget: Seconds = 30.0,
        on: Exceptions = (Exception,),
        never: Exceptions = (),
    ) -> None:
        arguments.whole("Retry(attempts=…), which counts the first try as well,", attempts, 1, MOST_ATTEMPTS)
        settled = {
            "attempts": attempts,
            "base": arguments.seconds("Retry(base=…)", base),
            "cap": arguments.seconds("Retry(cap=…)", cap),
            "budget": arguments.seconds_or_unlimited("Retry(budget=…)", budget),
            "on": arguments.exceptions("Retry(on=…)", on),
            "never": arguments.exceptions("Retry(never=…)", never),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def of(name: str, given: Retry | int | None, default: Retry) -> Retry:
        """The policy that is meant: itself, so many attempts, or for None the default.

        :raises UsageError: it is none of these; ``name`` says which argument it was.
        """
        if given is None:
            return default
        if isinstance(given, int) and not isinstance(given, bool):
            return Retry(attempts=arguments.whole(f"{name}, as attempts, the first included,", given, 1, MOST_ATTEMPTS))
        return arguments.instance(name, given, Retry, "or a whole number of attempts")

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
        if self.never and any(_is_one(each, self.never) for each in causes(error)):
            return False
        alike = members(error)
        if any(attribute(each, "retryable") is False for each in alike):
            return False
        return any(_is_one(each, self.on) for each in alike)


def _is_one(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Whether it is of one of these classes; no where they raise when they are asked, as a metaclass may."""
    try:
        return isinstance(error, classes)
    except BaseException:  # noqa: BLE001 - anybody's code
        return False
