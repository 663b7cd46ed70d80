"""Checks of what callers pass to relmsg's constructors: a wrong value is refused there, by its name.

Each takes the name as the caller wrote it, such as ``Inbox(prefetch=…)``, and the value, and returns the value as it is
used. What is plainly meant is taken: a timedelta for seconds, an exception class for a tuple of them.
"""

from __future__ import annotations

import inspect
import math
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from relmsg.errors import UsageError
from relmsg.exceptions import guarded

T = TypeVar("T")

MAX_TEXT_BYTES = 255  # AMQP's short strings, and enough for every name
MOST_BODY_BYTES = 128 * 1024 * 1024
MAX_DEPTH = 8
MOST_SHOWN = 80


def shown(value: object) -> str:
    """The value as an error may show it: on one line of at most 80 characters, whatever its ``repr`` does."""
    return shown_as(lambda: reprlib.repr(value), value)


def shown_as(make: Callable[[], str], value: object) -> str:
    """The text that ``make`` makes of a value, as ``shown`` shows it; its class where that fails or takes long."""
    told = guarded(make)
    line = f"<{_class_of(value)}>" if told is None else " ".join(told[: 10 * MOST_SHOWN].split())
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 1] + "…"


def name_of(function: object) -> str:
    """The name of a function, as errors and log lines tell it; a callable object without one is shown."""
    if isinstance(function, types.FunctionType | types.MethodType):
        return function.__qualname__
    told = guarded(lambda: str.__str__(function.__qualname__))  # type: ignore[attr-defined]
    return shown(function) if told is None else told


def _class_of(value: object) -> str:
    return str(type.__dict__["__name__"].__get__(type(value)))


def refused(name: str, value: object, rule: str) -> UsageError:
    """The error that says what ``name`` has to be, and what it was."""
    what = f"the class {value.__name__}" if isinstance(value, type) else shown(value)
    return UsageError(f"{name} {rule}".rstrip() + f", not {what}")


def text(name: str, value: Any, meaning: str = "is", *, most: int | None = MAX_TEXT_BYTES) -> str:
    """A text that is not empty, fits, and can be stored and sent: no NUL, no lone surrogates."""
    limit = "a string that is not empty" if most is None else f"a string of 1 to {most} bytes"
    if not isinstance(value, str) or not value.strip():
        raise refused(name, value, f"{meaning} {limit}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise refused(name, value, f"{meaning} valid Unicode") from None
    if "\0" in value:
        raise refused(name, value, f"{meaning} a string without NUL characters")
    if most is not None and size > most:
        raise refused(name, value, f"{meaning} {limit}")
    return value


def whole(name: str, value: Any, least: int, most: int, unit: str = "") -> int:
    """A whole number within limits; True and 2.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        of = f" of {unit}" if unit else ""
        raise refused(name, value, f"is a whole number{of} from {least} to {most}")
    return int(value)


def seconds(name: str, value: Any, *, least: float = 0.0, positive: bool = False, most: float = math.inf) -> float:
    """A time as seconds: a number or a timedelta. Infinity only where ``most`` says so by being larger than it."""
    number = _number(value)
    low = least if not positive else 0.0
    if number is None or not low <= number < math.inf or number > most or (positive and number == 0):
        rule = "a positive number of seconds, or a timedelta" if positive else "a number of seconds, or a timedelta"
        if not positive:
            rule += f", and at least {least:g}"
        if most < math.inf:
            rule += f", and at most {most:g}"
        raise refused(name, value, f"is {rule}")
    return number


def seconds_or_unlimited(name: str, value: Any, *, positive: bool = False) -> float:
    """As ``seconds``; infinity means that there is no limit."""
    if _number(value) == math.inf:
        return math.inf
    return seconds(name, value, positive=positive)


def flag_or_seconds(name: str, value: Any) -> float:
    """Seconds; True is without limit, False is none."""
    if isinstance(value, bool):
        return math.inf if value else 0.0
    if _number(value) is None:
        raise refused(name, value, "is True, False, a number of seconds or a timedelta")
    return seconds_or_unlimited(name, value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise refused(name, value, "is True or False")
    return value


def choice(name: str, value: Any, choices: Collection[str]) -> Any:
    """One of a few texts."""
    if not isinstance(value, str) or value not in choices:
        raise refused(name, value, f"is {' or '.join(repr(each) for each in choices)}")
    return value


def instance(name: str, value: Any, kind: type[T], hint: str = "") -> T:
    """An instance of a class; ``hint`` says how one is made."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        rule = f"is {article} {kind.__name__}{f' ({hint})' if hint else ''}"
        if isinstance(value, type) and issubclass(value, kind):
            raise UsageError(f"{name} {rule}, not the class itself: write {value.__name__}(…)")
        raise refused(name, value, rule)
    return value


def function(name: str, value: Any, what: str = "a function without arguments") -> Any:
    """Something that is called, and at once: not an ``async def``, whose call does nothing by itself."""
    if not callable(value):
        raise refused(name, value, f"is {what}")
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004 - asked about, not called
        raise refused(name, value, f"is {what}, and a plain one, not a coroutine function")
    return value


def named(value: Any, kind: type[Any]) -> Any:
    """The name of what is given: itself, or that of a ``kind``, such as a Queue."""
    return value.name if isinstance(value, kind) else value


def several(name: str, value: Any, kind: type[T]) -> tuple[T, ...]:
    """Things of one kind as a tuple; a single one is taken for a tuple of one."""
    if isinstance(value, kind):
        return (value,)
    expected = (
        f"a {kind.__name__} is expected" if kind.__name__[0] not in "AEIOU" else f"an {kind.__name__} is expected"
    )
    if isinstance(value, str | bytes | typing.Mapping) or not isinstance(value, Iterable):
        raise refused(f"{name}: {expected}, or a list or tuple of such", value, "")
    things = tuple(value)
    for thing in things:
        if not isinstance(thing, kind):
            raise refused(f"{name}: {expected}", thing, "")
    return things


def exceptions(name: str, value: Any) -> tuple[type[BaseException], ...]:
    """Exception classes as a flat tuple: a class, a union of classes, or any collection of these."""
    return tuple(dict.fromkeys(_classes(name, value, MAX_DEPTH)))


def _classes(name: str, value: Any, depth: int) -> Iterable[type[BaseException]]:
    rule = "holds exception classes, such as (ValueError, KeyError)"
    if isinstance(value, type) and issubclass(value, BaseException):
        yield value
    elif isinstance(value, types.UnionType) or typing.get_origin(value) is typing.Union:
        for each in typing.get_args(value):
            yield from _classes(name, each, depth - 1)
    elif isinstance(value, str | bytes | BaseException) or not isinstance(value, Iterable) or depth < 1:
        raise refused(name, value, rule)
    else:
        for each in value:
            yield from _classes(name, each, depth - 1)


def _number(value: Any) -> float | None:
    """Seconds; None for what is no time: True, NaN, and what only looks like a number."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def clock_and_chance(owner: str, clock: Any, chance: Callable[[], float]) -> None:
    """What is injected for tests has the shape it needs."""
    if clock is not None and not (
        callable(getattr(clock, "monotonic", None)) and callable(getattr(clock, "sleep", None))
    ):
        raise refused(f"{owner}(clock=…)", clock, "has monotonic() and sleep(seconds)")
    function(f"{owner}(chance=…)", chance, "a function that returns a number from 0 to 1, such as random.random")
