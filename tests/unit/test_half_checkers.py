"""Checkers: which are refused, and what becomes of whatever they do."""

from __future__ import annotations

import asyncio
import functools
import sys

import pytest

from relmsg.errors import CheckerRefused
from relmsg.half.checking import Checkers, HalfMessage
from relmsg.half.protocol import Answer
from relmsg.half.state import Resolution
from relmsg.message import Message


def asked(type_: str | None = "order.placed") -> HalfMessage:
    return HalfMessage(Message(type=type_, body=b"{}"), "shop", 1)


async def yes(half):
    return Resolution.COMMIT


async def no(half, verbose=False):
    return Resolution.ROLLBACK


def blocking(half):
    return Resolution.COMMIT


async def needy(half, session):
    return Resolution.COMMIT


async def empty():
    return Resolution.COMMIT


@pytest.mark.parametrize(
    ("type_", "function", "said"),
    [
        ("", yes, "give the message type"),
        (None, yes, "give the message type"),
        ("order.placed", blocking, "async def"),
        ("order.placed", "yes", "async def"),
        ("order.placed", needy, "one argument, the half message: .*session"),
        ("order.placed", empty, "one argument"),
        ("taken", no, "has a checker already, yes"),
    ],
)
def test_a_checker_that_could_never_be_asked_is_refused(type_, function, said):
    """What cannot be called with one half message, or answers for a type that has a checker, is refused at once."""
    checkers = Checkers(timeout=1)
    checkers.add("taken", yes)
    with pytest.raises(CheckerRefused, match=said):
        checkers.add(type_, function)
    assert checkers.find("taken") is yes


async def test_the_type_finds_its_checker():
    """A type is asked of its own checker, any other one of that for "*", and without one nobody is asked."""
    checkers = Checkers(timeout=1)
    assert not checkers
    checkers.add("order.placed", functools.partial(no, verbose=True))
    assert checkers
    assert await checkers.ask(asked()) is Answer.ROLLBACK
    assert await checkers.ask(asked("order.paid")) is Answer.NO_CHECKER
    assert await checkers.ask(asked(None)) is Answer.NO_CHECKER
    checkers.add("*", yes)
    assert await checkers.ask(asked()) is Answer.ROLLBACK
    assert await checkers.ask(asked("order.paid")) is Answer.COMMIT
    assert await checkers.ask(asked(None)) is Answer.COMMIT


async def fails(half):
    raise ValueError("no such order")


async def leaves(half):
    sys.exit(3)


async def sleeps(half):
    await asyncio.Event().wait()


async def cancels_itself(half):
    raise asyncio.CancelledError


async def forgets(half):
    pass


async def says_a_word(half):
    return "COMMIT"


@pytest.mark.parametrize("checker", [fails, leaves, sleeps, cancels_itself, forgets, says_a_word])
async def test_whatever_is_no_answer_is_unknown(checker):
    """H12: an exception, a timeout and any value that is no Resolution are UNKNOWN, and never a rollback."""
    checkers = Checkers(timeout=0.05)
    checkers.add("*", checker)
    assert await checkers.ask(asked()) is Answer.UNKNOWN


async def test_a_check_can_be_cancelled():
    """Who cancels the task of a check gets it cancelled: that is no answer of the checker."""
    checkers = Checkers(timeout=60)
    checkers.add("*", sleeps)
    asking = asyncio.create_task(checkers.ask(asked()))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def quotes_the_body(half):
    raise ValueError(f"no such card: {half.body}") from KeyError(half.body)


async def quotes_it_after_the_deadline(half):
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError(half.body) from None


async def returns_the_body(half):
    return half.body


async def returns_it_as_text(half):
    return half.body.decode()


@pytest.mark.parametrize(
    "checker", [quotes_the_body, quotes_it_after_the_deadline, returns_the_body, returns_it_as_text]
)
async def test_what_a_checker_says_of_an_encrypted_body_is_not_logged(checker, caplog):
    """The body that a checker was given in plain does not reach the log when it was published encrypted."""
    for headers in ({}, {"message-encryption": "v1;aes-256-gcm;cards"}):
        caplog.clear()
        checkers = Checkers(timeout=0.05)
        checkers.add("*", checker)
        half = HalfMessage(Message(type="paid", body=b"4111-1111", headers=headers), "shop", 1)
        assert await checkers.ask(half) is Answer.UNKNOWN
        assert checker.__name__ in caplog.text
        assert ("4111" in caplog.text) == (not headers)
