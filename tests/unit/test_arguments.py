"""What the constructors take, and what they refuse at once, by name."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from relmsg import Binding, Exchange, HalfProducer, Hint, Inbox, Message, Outbox, Publisher, Queue, Retry, Topology
from relmsg.errors import HandlerRefused, UsageError

ENGINE = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")
SESSIONS = async_sessionmaker(ENGINE)
AMQP = "amqp://127.0.0.1:1"


async def handle(message: Message) -> None: ...


def registered(**given: Any) -> Any:
    """The handler as an inbox keeps it."""
    inbox = Inbox("billing", SESSIONS)
    kept: list[Any] = []
    inbox._registry.add = kept.append  # type: ignore[method-assign]
    inbox.handler("order.placed", **({"queue": "billing.orders"} | given))(handle)
    return kept[0]


def test_a_handler_takes_what_is_plainly_meant() -> None:
    """A Queue stands for its name, a timedelta for its seconds, an int for attempts."""
    handler = registered(queue=Queue("q"), timeout=timedelta(minutes=1), retry=3, group=2)
    assert (handler.queue, handler.timeout, handler.retry, handler.group) == ("q", 60.0, Retry(attempts=3), 2)
    assert registered(timeout=5).timeout == 5
    assert registered(timeout=None).timeout is None


def test_a_retry_takes_what_is_plainly_meant() -> None:
    """A class, a list or a union of exceptions is a tuple of them; a timedelta is its seconds."""
    assert Retry(on=ValueError).on == (ValueError,)
    assert Retry(on=[ValueError, (KeyError, OSError)]).on == (ValueError, KeyError, OSError)  # type: ignore[list-item]
    assert Retry(never=ValueError | KeyError).never == (ValueError, KeyError)  # type: ignore[arg-type]
    assert Retry(base=timedelta(milliseconds=5), budget=timedelta(minutes=2)) == Retry(base=0.005, budget=120)
    assert Retry(on=ValueError).retries(ValueError())
    assert not Retry(on=ValueError).retries(KeyError())
    assert Retry(attempts=9, budget=math.inf).delay(1, ValueError(), 1e9) is not None


def test_a_topology_takes_any_sequence_and_a_single_one() -> None:
    """Lists, tuples and single values of the right class make the same topology."""
    shop, orders = Exchange("shop"), Queue("orders", bindings=Binding(Exchange("shop"), routing_key="o"))
    assert Topology(shop, orders) == Topology([shop], (orders,))
    assert orders == Queue("orders", bindings=[Binding("shop", "orders", "o")])
    assert Queue("q", dead_letter_exchange=Exchange("dead")) == Queue("q", dead_letter_exchange="dead")
    assert Binding(shop, orders, "o") == Binding("shop", "orders", "o")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"retry": Retry}, "retry"),
        ({"retry": "3"}, "retry"),
        ({"retry": True}, "retry"),
        ({"retry": 0}, "retry"),
        ({"retry": 2.5}, "retry"),
        ({"retry": (1, 2)}, "retry"),
        ({"group": 2.5}, "group"),
        ({"group": 0}, "group"),
        ({"group": "10"}, "group"),
        ({"group": True}, "group"),
        ({"queue": ""}, "queue"),
        ({"queue": None}, "queue"),
        ({"queue": Queue}, "queue"),
        ({"queue": ["a"]}, "queue"),
        ({"queue": b"q"}, "queue"),
        ({"queue": Exchange("q")}, "queue"),
        ({"consumer": ""}, "consumer"),
        ({"consumer": 7}, "consumer"),
        ({"consumer": "x" * 256}, "consumer"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": timedelta(0)}, "timeout"),
        ({"timeout": 10**400}, "timeout"),
    ],
)
def test_a_handler_refuses_the_rest_when_it_is_registered(given: dict[str, Any], name: str) -> None:
    """What no handler can have is refused before any message comes, and the argument is named."""
    with pytest.raises(HandlerRefused, match=name) as refused:
        registered(**given)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("type_", ["", None, 7, Message, "x" * 256, "a\0b"])
def test_a_handler_is_for_a_type_that_there_can_be(type_: Any) -> None:
    """The type of the messages is a text that AMQP can carry."""
    with pytest.raises(HandlerRefused, match="type"):
        Inbox("billing", SESSIONS).handler(type_, queue="q")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Retry(attempts=0), "attempts"),
        (lambda: Retry(attempts=2.0), "attempts"),
        (lambda: Retry(attempts="3"), "attempts"),
        (lambda: Retry(base="1"), "base"),
        (lambda: Retry(cap=-1), "cap"),
        (lambda: Retry(budget=math.nan), "budget"),
        (lambda: Retry(on="ValueError"), "on"),
        (lambda: Retry(on=ValueError("x")), "on"),
        (lambda: Retry(on=(int,)), "on"),
        (lambda: Retry(never=["ValueError"]), "never"),
        (lambda: Retry(never=None), "never"),
        (lambda: Inbox("", SESSIONS), "name"),
        (lambda: Inbox(None, SESSIONS), "name"),
        (lambda: Inbox("b", ENGINE), "sessions"),
        (lambda: Inbox("b", SESSIONS()), "sessions"),
        (lambda: Inbox("b", sessionmaker(create_engine("sqlite://"))), "sessions"),
        (lambda: Inbox("b", async_sessionmaker(create_engine("sqlite://"))), "sessions"),
        (lambda: Inbox("b", SESSIONS, concurrency="8"), "concurrency"),
        (lambda: Inbox("b", SESSIONS, concurrency=8.0), "concurrency"),
        (lambda: Inbox("b", SESSIONS, concurrency=0), "concurrency"),
        (lambda: Inbox("b", SESSIONS, prefetch="250"), "prefetch"),
        (lambda: Inbox("b", SESSIONS, prefetch=0), "prefetch"),
        (lambda: Inbox("b", SESSIONS, prefetch=70_000), "prefetch"),
        (lambda: Inbox("b", SESSIONS, drain="25"), "drain"),
        (lambda: Inbox("b", SESSIONS, drain=-1), "drain"),
        (lambda: Inbox("b", SESSIONS, heartbeat=0), "heartbeat"),
        (lambda: Inbox("b", SESSIONS, heartbeat="10"), "heartbeat"),
        (lambda: Inbox("b", SESSIONS, missing_id="ignore"), "missing_id"),
        (lambda: Inbox("b", SESSIONS, missing_id=["hash"]), "missing_id"),
        (lambda: Inbox("b", SESSIONS, amqp_url="http://x"), "amqp_url"),
        (lambda: Inbox("b", SESSIONS, amqp_url=7), "amqp_url"),
        (lambda: Inbox("b", SESSIONS, schema=7), "schema"),
        (lambda: Inbox("b", SESSIONS, schema=""), "schema"),
        (lambda: Inbox("b", SESSIONS, error_exchange=""), "exchange"),
        (lambda: Inbox("b", SESSIONS, error_exchange=7), "exchange"),
        (lambda: Inbox("b", SESSIONS, clock=5), "clock"),
        (lambda: Inbox("b", SESSIONS, chance=0.5), "chance"),
        (lambda: Outbox(""), "source"),
        (lambda: Outbox(7), "source"),
        (lambda: Outbox("o", max_body_bytes="1"), "max_body_bytes"),
        (lambda: Outbox("o", max_body_bytes=0), "max_body_bytes"),
        (lambda: Outbox("o", collect="yes"), "collect"),
        (lambda: Outbox("o", wake=5), "wake"),
        (lambda: Outbox("o", wake=asyncio.sleep), "wake"),
        (lambda: Outbox("o", schema="pg_mine"), "schema"),
        (lambda: Hint(create_engine("sqlite://")), "engine"),
        (lambda: Hint(ENGINE, schema=7), "schema"),
        (lambda: Publisher(7), "url"),
        (lambda: Publisher(AMQP, source=""), "source"),
        (lambda: Publisher(AMQP, deadline="30"), "deadline"),
        (lambda: Publisher(AMQP, deadline=0), "deadline"),
        (lambda: Publisher(AMQP, window=0), "window"),
        (lambda: Publisher(AMQP, window=1.5), "window"),
        (lambda: Publisher(AMQP, retry=Retry), "retry"),
        (lambda: HalfProducer(AMQP, group=""), "group"),
        (lambda: HalfProducer(AMQP, group="g", deadline="5"), "deadline"),
        (lambda: HalfProducer(AMQP, group="g", concurrency="4"), "concurrency"),
        (lambda: HalfProducer(AMQP, group="g", retry=-1), "retry"),
        (lambda: HalfProducer(AMQP, group="g", fence=True), "fence"),
        (lambda: HalfProducer(AMQP, group="g", identify="no"), "identify"),
        (lambda: Exchange("x", type=7), "7"),
        (lambda: Exchange("x", durable="yes"), "durable"),
        (lambda: Exchange(None), "exchange"),
        (lambda: Queue("q", type=["quorum"]), "quorum"),
        (lambda: Queue("q", overflow="drop"), "overflow"),
        (lambda: Queue("q", delivery_limit="5"), "delivery_limit"),
        (lambda: Queue("q", bindings="shop"), "bindings"),
        (lambda: Queue("q", bindings=[("shop", "q")]), "bindings"),
        (lambda: Queue("q", dead_letter_exchange=7), "exchange"),
        (lambda: Queue("q", dead_letter_routing_key=7), "dead_letter_routing_key"),
        (lambda: Binding(None, "q"), "exchange"),
        (lambda: Binding("x", 7), "queue"),
        (lambda: Binding("x", "q", 7), "routing_key"),
        (lambda: Binding("x", "q", arguments=["a"]), "arguments"),
        (lambda: Topology(exchanges="shop"), "exchanges"),
        (lambda: Topology(exchanges=[Queue("q")]), "exchanges"),
        (lambda: Topology(queues={"q": 1}), "queues"),
        (lambda: Topology(bindings=7), "bindings"),
    ],
)
async def test_a_constructor_refuses_at_once_what_cannot_work(make: Callable[[], object], name: str) -> None:
    """A wrong argument is refused where it is written, in one line that names it."""
    with pytest.raises(UsageError, match=name) as refused:
        make()
    assert "\n" not in str(refused.value)


async def test_run_refuses_wrong_arguments_by_name() -> None:
    """What is given to run is held against the same rules as what is given to the inbox."""
    inbox = Inbox("billing", async_sessionmaker())
    inbox.handler("a", queue="q")(handle)
    for wrong in ({"prefetch": 0}, {"concurrency": "8"}, {"drain": "1"}, {"heartbeat": 0}, {"stop": 1}, {"started": 1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            await inbox.run(AMQP, **wrong)  # type: ignore[arg-type]


def test_a_function_that_would_get_nothing_is_refused() -> None:
    """`*args` and `**kwargs` are given nothing: where something was meant to be given, this is told."""
    register = Inbox("billing", SESSIONS).handler("a", queue="q")

    async def asterisk(*e: dict[str, int]) -> None: ...

    async def asterisks(**e: Message) -> None: ...

    async def anything(*args: Any, **kwargs: Any) -> None: ...

    async def session_only(*sessions: AsyncSession) -> None: ...

    for refused in (asterisk, asterisks, anything, session_only):
        with pytest.raises(HandlerRefused, match=refused.__name__):
            register(refused)

    @functools.wraps(handle)
    async def decorated(*args: Any, **kwargs: Any) -> None:
        await handle(*args, **kwargs)

    register(decorated)


def test_a_repr_that_fails_does_not_hide_the_mistake() -> None:
    """The refused value is the user's object, and may do anything when it is shown."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with pytest.raises(HandlerRefused, match=r"timeout.*Broken"):
        registered(timeout=Broken())
    with pytest.raises(UsageError, match="concurrency") as refused:
        Inbox("b", SESSIONS, concurrency="8" * 10_000)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 300
