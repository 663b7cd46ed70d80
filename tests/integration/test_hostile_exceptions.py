"""Exceptions whose own code raises what no ``except Exception`` catches, out of handlers beside good ones."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import HalfMessage, Inbox, Message, Resolution, Retry
from relmsg.half.checking import Checkers
from relmsg.half.protocol import Answer
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled

GOOD = "good"
TWICE = Retry(attempts=2, base=0.001, cap=0.001, never=ZeroDivisionError)


class Panic(BaseException):
    """As a Rust extension raises it."""


ENDS = (RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, Panic)
PROPERTIES = ("__class__", "retryable", "sqlstate", "orig", "exceptions", "__cause__", "__traceback__", "args", "name")
METHODS = ("__str__", "__repr__", "__getattr__", "__getattribute__", "__setattr__", "__eq__", "__hash__", "__bool__")


def raising(kind: type[BaseException]) -> Callable[..., Any]:
    def ends(*_: object) -> Any:
        raise kind

    return ends


def hostile() -> dict[str, Callable[[], BaseException]]:
    """By a name of each: what makes such an exception."""
    made: dict[str, Callable[[], BaseException]] = {}
    for kind in ENDS:
        for name in PROPERTIES:
            made[f"{kind.__name__} {name}"] = type("Hostile", (Exception,), {name: property(raising(kind))})
        for name in METHODS:
            made[f"{kind.__name__} {name}"] = type("Hostile", (Exception,), {name: raising(kind)})
        wrapper = type("Wrapper", (DBAPIError,), {"orig": property(raising(kind)), "__init__": lambda _: None})
        made[f"{kind.__name__} behind SQLAlchemy"] = wrapper
        group = type("Group", (ExceptionGroup,), {"exceptions": property(raising(kind)), "split": raising(kind)})
        made[f"{kind.__name__} in a group"] = lambda group=group: group("g", [ValueError()])
    return made


HOSTILE = hostile()


@dataclass
class Order:
    """Its validation raises what its kind names."""

    kind: str

    def __post_init__(self) -> None:
        if (make := HOSTILE.get(self.kind)) is not None:
            error = make()
            raise error


async def test_a_model_that_raises_such_an_exception_fails_its_message_only(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Decoding is not the handler's call, and its exceptions are anybody's just the same."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(_: Order, message: Message, session: AsyncSession) -> None:
        await effect(session, message)

    async with running(inbox, amqp_url):
        for kind in (*HOSTILE, GOOD):
            await place(broker, kind, body=json.dumps({"kind": kind}).encode())
        await settled(inbox, within=60, failed=len(HOSTILE), handled=1)
        assert (inbox.live(), inbox.ready()) == (None, None)
    assert await effects(sessions) == [GOOD]


async def test_what_a_checker_returns_may_raise_when_it_is_asked() -> None:
    """Whatever a checker returns that is no Resolution is UNKNOWN."""

    class Odd:
        __class__ = property(raising(KeyboardInterrupt))  # type: ignore[assignment]
        __repr__ = raising(KeyboardInterrupt)

    async def check(_: HalfMessage) -> Resolution:
        return Odd()  # type: ignore[return-value]

    checkers = Checkers(5.0)
    checkers.add("t", check)
    half = HalfMessage(Message(type="t", body=b"", id=uuid.uuid4()), "g", 1)
    assert await checkers.ask(half) is Answer.UNKNOWN


@pytest.mark.parametrize("way", ["single", "group", "list"])
async def test_an_exception_that_raises_when_it_is_asked_fails_its_message_only(
    way: str, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Each goes to the error queue, the others are handled, and the consumer lives."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    inbox = Inbox("billing", sessions)

    async def one(message: Message, session: AsyncSession) -> None:
        if (make := HOSTILE.get(str(message.id))) is not None:
            error = make()
            raise error
        await effect(session, message)

    if way == "list":

        @inbox.handler("order.placed", queue=QUEUE, retry=TWICE)
        async def handle_list(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await one(message, session)
    else:

        @inbox.handler("order.placed", queue=QUEUE, retry=TWICE, group=1 if way == "single" else 50)
        async def handle(message: Message, session: AsyncSession) -> None:
            await one(message, session)

    async with running(inbox, amqp_url):
        await place(broker, *HOSTILE, GOOD)
        await settled(inbox, within=60, failed=len(HOSTILE), handled=1)
        assert (inbox.live(), inbox.ready()) == (None, None)
    assert await effects(sessions) == [GOOD]
