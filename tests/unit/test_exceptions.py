"""Exceptions of anybody's making: their causes, text and trace."""

from __future__ import annotations

import asyncio
import threading

import pytest

from relmsg import exceptions
from relmsg.exceptions import UNREADABLE, attribute, causes, members, text_of, trace_of, type_name


def raised(error: BaseException) -> BaseException:
    """The exception, with a trace."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_cause_that_is_the_error_itself_is_met_once() -> None:
    """An error whose cause is itself has no other cause."""
    error = ValueError("a")
    error.__cause__ = error
    assert list(causes(error)) == [error]


def test_causes_that_lead_back_are_met_once() -> None:
    """A circle of causes and contexts ends."""
    first, second, third = ValueError("1"), ValueError("2"), ValueError("3")
    first.__cause__, second.__context__, third.__cause__ = second, third, first
    assert list(causes(first)) == [first, second, third]


def test_causes_are_looked_for_in_groups() -> None:
    """The members of a group, those of a group within it, and their causes count."""
    cause, inner = KeyError("cause"), ValueError("inner")
    inner.__cause__ = cause
    group = ExceptionGroup("outer", [TypeError("t"), ExceptionGroup("nested", [inner])])
    assert {type(each) for each in causes(group)} == {ExceptionGroup, TypeError, ValueError, KeyError}
    assert [type(each) for each in members(group)] == [ExceptionGroup, TypeError, ExceptionGroup, ValueError]


def test_from_none_hides_the_context() -> None:
    """What was raised ``from None`` has nothing to do with what was being handled."""
    error = ValueError("told")
    error.__context__ = KeyError("hidden")
    assert len(list(causes(error))) == 2
    error.__cause__ = None  # as `from None` does
    assert list(causes(error)) == [error]


def test_causes_are_read_past_an_exceptions_own_attributes() -> None:
    """An exception that overrides ``__cause__`` and ``__context__`` cannot break or lengthen the walk."""

    class Hostile(Exception):
        @property
        def __cause__(self) -> BaseException:  # type: ignore[override]
            raise RuntimeError

        __context__ = property(lambda _: Hostile())  # type: ignore[assignment]

    assert len(list(causes(Hostile()))) == 1


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class BadArgs(Exception):
    @property
    def args(self) -> tuple[object, ...]:  # type: ignore[override]
        raise RuntimeError("no args")


class ExitingText(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class NotText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class BadArgument:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


UNREADABLES = [BadText(), ExitingText(), NotText(), ValueError(BadArgument()), OSError(2, "no", BadArgument())]


@pytest.mark.parametrize("error", UNREADABLES, ids=type_name)
def test_a_text_that_raises_is_told_as_such(error: BaseException) -> None:
    """Text and trace come, with the class's name, whatever the exception's own code raises."""
    assert text_of(error) == UNREADABLE
    assert type_name(error) in trace_of(raised(error))
    assert "in raised" in trace_of(error)


def test_args_that_raise_do_not_hinder_the_text() -> None:
    """An exception whose ``args`` raise has a text and a trace."""
    assert text_of(BadArgs("told")) == "told"
    assert "BadArgs" in trace_of(raised(BadArgs("told")))


def test_a_long_text_is_cut() -> None:
    """Three megabytes of text become at most the limit, and so does their trace."""
    error = raised(ValueError("x" * 3_000_000))
    assert len(text_of(error, 500)) == 500
    trace = trace_of(error, 4_000)
    assert len(trace) <= 4_000
    assert "in raised" in trace


def test_lone_surrogates_are_written_out() -> None:
    """Text and trace can be encoded as UTF-8, whatever the exception's text holds."""
    error = raised(ValueError("\udcff"))
    text_of(error).encode()
    trace_of(error).encode()


def test_a_text_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that waits in ``__str__`` is waited for as long as the limit says, and no more than eight hang."""
    monkeypatch.setattr(exceptions, "TEXT_SECONDS", 0.01)
    released = threading.Event()

    class Waiting(Exception):
        def __str__(self) -> str:
            released.wait(60)
            return "late"

    try:
        for _ in range(exceptions.MOST_HUNG + 3):
            assert text_of(Waiting()) == UNREADABLE
        assert len(exceptions._hung) <= exceptions.MOST_HUNG
        assert text_of(ValueError("plain")) == "plain"
    finally:
        released.set()
        for thread in list(exceptions._hung):
            thread.join(10)
    assert text_of(BadArgs("again")) == "again"


def test_an_attribute_that_raises_is_none() -> None:
    """What an exception says of itself may raise, also what is no Exception."""
    for kind in (RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):

        class Hostile(Exception):
            @property
            def retryable(self, kind: type[BaseException] = kind) -> bool:
                raise kind

        assert attribute(Hostile(), "retryable") is None
