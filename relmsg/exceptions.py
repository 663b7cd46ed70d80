"""Reads exceptions that anybody may have written: their causes, their text, their stack trace.

An exception's ``__str__`` and ``__repr__``, and those of its arguments, are other people's code. They may raise, return
megabytes, or wait for a lock that nobody will release. Nothing here raises, and nothing here takes longer than
``TEXT_SECONDS`` for one exception.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

TEXT_CHARACTERS = 1_000
TRACE_CHARACTERS = 16_000
TEXT_SECONDS = 1.0
MOST_CAUSES = 1_000
MOST_HUNG = 8  # threads whose text never came; each is a daemon and holds nothing of ours
LONGEST_LINE = 2_000
UNREADABLE = "(its text cannot be read)"
PLAIN = (str, bytes, int, float, bool, type(None))
PYTHONS_OWN = (BaseException.__str__, KeyError.__str__)

_hung: set[threading.Thread] = set()


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, then all that it contains or came from, each once, nearest first.

    These are the members of an ``ExceptionGroup``, what it was raised ``from``, and what was being handled when it was
    raised, unless ``from None`` says that this has nothing to do with it. Chains that lead back to themselves end.
    """
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting and len(seen) < MOST_CAUSES:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting.extend(_nearest(each))


def members(error: BaseException) -> list[BaseException]:
    """An exception, and if it is a group all that the group and the groups in it hold."""
    found = [error]
    for each in found:
        if isinstance(each, BaseExceptionGroup) and len(found) < MOST_CAUSES:
            found.extend(own(each, "exceptions"))
    return found


def attribute(error: BaseException, name: str) -> object:
    """What an exception says of itself under ``name``; None where it says nothing, or its own code raises."""
    try:
        return getattr(error, name, None)
    except BaseException:  # noqa: BLE001 - a property of anybody's making, which may raise what ends a process, too
        return None


def text_of(error: BaseException, limit: int = TEXT_CHARACTERS) -> str:
    """The text of an exception, at most ``limit`` characters; empty where it has none.

    ``(its text cannot be read)`` where its own code raises or does not answer within ``TEXT_SECONDS``.
    """
    told = str(error) if _is_plain(error) else guarded(lambda: str(error))
    return UNREADABLE if told is None else _start(told, limit)


def type_name(error: BaseException) -> str:
    """The name of an exception's class, without its module."""
    return str(type.__dict__["__name__"].__get__(type(error)))


def trace_of(error: BaseException, limit: int = TRACE_CHARACTERS) -> str:
    """The stack trace as Python prints it, with its causes, at most ``limit`` characters.

    What is too long is cut in the middle: the beginning shows where it started and the end what happened. Where the
    text of one exception cannot be read, the stack is still shown.
    """

    def whole() -> str:
        return "".join(traceback.format_exception(error))

    told = guarded(whole)
    if told is None:
        told = f"{stack_of(error).rstrip()}: {text_of(error)}\n"
    if len(told) > limit:
        told = "\n".join(_start(line, LONGEST_LINE) for line in told.split("\n"))
    if len(told) > limit:
        head = limit // 4
        told = f"{told[:head]}\n…\n{told[len(told) - max(0, limit - head - 3) :]}"
    return _sendable(told[:limit])


def stack_of(error: BaseException, limit: int = TRACE_CHARACTERS) -> str:
    """Where an exception was raised, without its text and the text of its causes."""
    stack = "".join(traceback.format_tb(own(error, "__traceback__")))
    told = f"Traceback (most recent call last):\n{stack}{type_name(error)}\n"
    return told if len(told) <= limit else told[len(told) - limit :]


def _nearest(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    if isinstance(error, BaseExceptionGroup):
        found.extend(own(error, "exceptions"))
    cause = own(error, "__cause__")
    if cause is not None:
        found.append(cause)
    elif not own(error, "__suppress_context__"):
        context = own(error, "__context__")
        if context is not None:
            found.append(context)
    return found


def own(error: BaseException, name: str) -> Any:
    """What Python itself keeps under a name, such as ``__traceback__``: a subclass may have put anything in its
    place."""
    kept = BaseExceptionGroup if name == "exceptions" else BaseException
    return kept.__dict__[name].__get__(error)


def _is_plain(error: BaseException) -> bool:
    """Whether no code but Python's own is run to make its text."""
    if type(error).__str__ not in PYTHONS_OWN or type(error).__repr__ is not BaseException.__repr__:
        return False
    return all(type(each) in PLAIN for each in own(error, "args"))


def guarded(make: Callable[[], str]) -> str | None:
    """The text that somebody else's code makes; None where it raises, or takes longer than ``TEXT_SECONDS``."""
    told: list[str] = []

    def run() -> None:
        try:
            text = make()
            told.append(str.__getitem__(text, slice(None)))  # a subclass of str could bring code of its own
        except BaseException:  # noqa: BLE001, S110 - SystemExit and the like, raised by a __str__, must end here too
            pass

    _hung.difference_update([each for each in _hung if not each.is_alive()])
    if len(_hung) >= MOST_HUNG:
        return None
    thread = threading.Thread(target=run, name="relmsg: text of an exception", daemon=True)
    thread.start()
    thread.join(TEXT_SECONDS)
    if thread.is_alive():
        _hung.add(thread)
        return None
    return told[0] if told else None


def _start(text: str, limit: int) -> str:
    return _sendable(text if len(text) <= limit else text[: max(0, limit - 1)] + "…")


def _sendable(text: str) -> str:
    """The text without lone surrogates, which no log, header or column can hold."""
    return text.encode(errors="backslashreplace").decode()
