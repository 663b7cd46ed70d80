"""Every public constructor and decorator, each of its arguments, and many values that cannot be meant there."""

from __future__ import annotations

import asyncio
import decimal
import inspect
import math
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from relmsg import (
    AesGcmKey,
    Binding,
    Ed25519Key,
    Ed25519PublicKey,
    Encryption,
    Exchange,
    HalfProducer,
    Hint,
    HmacKey,
    Inbox,
    Keys,
    Message,
    Outbox,
    Publisher,
    Queue,
    Retry,
    Sender,
    Signing,
    Topology,
    Trust,
)
from relmsg.errors import CheckerRefused, HandlerRefused, RelmsgError, UsageError
from relmsg.half.coordinator import Coordinator
from relmsg.half.fence import Fence, create_fence, fence_table
from relmsg.inbox.attempt import idle_limit
from relmsg.outbox.relay import Relay
from relmsg.settings import Settings

ENGINE = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")
SESSIONS = async_sessionmaker(ENGINE)
AMQP = "amqp://127.0.0.1:1"
SECRET = b"k" * 32


class Unshown:
    """Raises what no ``except Exception`` catches when it is shown."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt


async def handle(message: Message) -> None: ...


VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2.5, math.nan, math.inf, -math.inf, 10**400, 2**31, 2**63, "", " ", "3", "a\0b",
    "\ud800", "x" * 300, "x\ny", "é", "amqp://[", "%", b"", b"x", bytearray(b"x"), [], [1], ["a"], (), ("a", "b"), {},
    {"a": 1}, {1: 2}, set(), {"x"}, object(), int, ValueError, ValueError("x"), timedelta(seconds=-1), timedelta(0),
    timedelta(days=999_999_999), decimal.Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), uuid.uuid4(), lambda: 1, ...,
    asyncio.sleep, Unshown(), range(3), Queue, Queue("q"), Exchange("e"), Binding("e", "q"), Topology(),
    Message(type="a"), Retry, Retry(), SESSIONS, ENGINE, Inbox, Outbox("x"), Settings, HmacKey("a", SECRET),
    AesGcmKey("a", SECRET), HmacKey,
]  # fmt: skip

CALLS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "Retry": (Retry, {}),
    "Exchange": (Exchange, {"name": "e"}),
    "Binding": (Binding, {"exchange": "e", "queue": "q"}),
    "Queue": (Queue, {"name": "q"}),
    "Topology": (Topology, {}),
    "Outbox": (Outbox, {"source": "x"}),
    "insert": (Outbox("x").insert, {"message": Message(type="a")}),
    "wrap": (Outbox("x").wrap, {"tx": SESSIONS(), "exchange": "e"}),
    "Inbox": (Inbox, {"name": "x", "sessions": SESSIONS}),
    "handler": (Inbox("x", SESSIONS).handler, {"type": "t", "queue": "q"}),
    "register": (Inbox("x", SESSIONS).handler("t", queue="q"), {"function": handle}),
    "running": (Inbox("x", SESSIONS).running, {"amqp_url": AMQP}),
    "Publisher": (Publisher, {"url": AMQP}),
    "HalfProducer": (HalfProducer, {"amqp_url": AMQP, "group": "g"}),
    "checker": (HalfProducer(AMQP, group="g").checker, {"type": "t"}),
    "fenced_checker": (HalfProducer(AMQP, group="g").fenced_checker, {"sessions": SESSIONS}),
    "Fence": (Fence, {}),
    "fence_table": (fence_table, {}),
    "HmacKey": (HmacKey, {"id": "a", "secret": SECRET}),
    "Ed25519Key": (Ed25519Key, {"id": "a", "private": SECRET}),
    "Ed25519PublicKey": (Ed25519PublicKey, {"id": "a", "public": SECRET}),
    "AesGcmKey": (AesGcmKey, {"id": "a", "secret": SECRET}),
    "Encryption": (Encryption, {"keys": AesGcmKey("a", SECRET)}),
    "Signing": (Signing, {"keys": HmacKey("a", SECRET)}),
    "Keys": (Keys, {"keys": [HmacKey("a", SECRET)]}),
    "Sender": (Sender, {"keys": HmacKey("a", SECRET)}),
    "Trust": (Trust, {"sources": {}}),
    "id_for": (Message.id_for, {"business_key": "x"}),
}


def refusal(call: Callable[[], object]) -> str:
    """What relmsg says against a call; empty where it says nothing. Any other exception comes out."""
    try:
        call()
    except RelmsgError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CALLS)
async def test_every_wrong_argument_is_refused_in_one_line_or_accepted(name: str) -> None:
    """Nothing but an error of relmsg's, short and on one line, comes out of a constructor or decorator."""
    call, needed = CALLS[name]
    call(**needed)
    for parameter in inspect.signature(call).parameters:
        for value in VALUES:
            told = refusal(partial(call, **{**needed, parameter: value}))
            assert "\n" not in told, (parameter, value)
            assert len(told) < 400, (parameter, value)


@pytest.mark.parametrize("field", ["type", "exchange", "routing_key", "headers", "id", "source", "content_type",
                                   "content_encoding", "correlation_id", "reply_to", "expiration", "timestamp",
                                   "ordering_key", "body"])  # fmt: skip
async def test_every_wrong_field_of_a_message_is_refused_in_one_line_or_sent(field: str) -> None:
    """Publishing raises nothing but errors of relmsg's, whatever a message holds."""
    for value in VALUES:
        told = refusal(partial(Outbox("x").insert, Message(**{"type": "a", field: value})))
        assert "\n" not in told, value
        assert len(told) < 400, value


SENDERS = {"a": Sender(users=["a"])}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Signing(None), r"Signing\(keys\)"),
        (lambda: Signing(HmacKey), r"Signing\(keys\).*HmacKey"),
        (lambda: Signing([HmacKey("a", SECRET), "b"]), r"Signing\(keys\)"),
        (lambda: Signing(AesGcmKey("a", SECRET)), "AesGcmKey cannot sign"),
        (lambda: Signing(Keys([AesGcmKey("a", SECRET)])), "AesGcmKey cannot sign"),
        (lambda: Signing(Ed25519Key("a", SECRET).public), "cannot sign"),
        (lambda: Signing({"a": HmacKey("a", SECRET)}), r"Signing\(keys\)"),
        (lambda: Signing([]), r"Signing\(keys\)"),
        (lambda: Encryption(HmacKey("a", SECRET)), "HmacKey cannot encrypt"),
        (lambda: Encryption(SECRET), r"Encryption\(keys\)"),
        (lambda: Encryption(Message(type="a")), r"Encryption\(keys\)"),
        (lambda: Sender(keys=Ed25519Key("a", SECRET)), "cannot verify.*public"),
        (lambda: Sender(keys=7), r"Sender\(keys=…\)"),
        (lambda: Sender(users=[7]), r"Sender\(users=…\)"),
        (lambda: Sender(users=7), r"Sender\(users=…\)"),
        (lambda: Trust([("a", SENDERS["a"])]), r"Trust\(sources\)"),
        (lambda: Trust({"a": HmacKey("a", SECRET)}), r"Trust\(sources\).*'a'"),
        (lambda: Trust({"": SENDERS["a"]}), r"Trust\(sources\)"),
        (lambda: Ed25519Key("a", None), r"Ed25519Key\(private\)"),
        (lambda: Ed25519Key("a", "-----BEGIN NOTHING-----\nAA==\n-----END NOTHING-----"), r"Ed25519Key\(private\)"),
        (lambda: Ed25519PublicKey("a", bytearray(SECRET)), r"Ed25519PublicKey\(public\)"),
        (lambda: Message.id_for(7), "business_key"),
        (lambda: Message.id_for(None), "business_key"),
        (lambda: Fence("relmsg_fence"), r"Fence\(table\)"),
        (lambda: Fence(Table("t", MetaData(), Column("half_id", Integer))), "decided_at, resolution"),
        (lambda: Fence(lock_seconds="1"), "lock_seconds"),
        (lambda: Fence(lock_seconds=math.inf), "lock_seconds"),
        (lambda: Fence(lock_seconds=True), "lock_seconds"),
        (lambda: fence_table("metadata"), "metadata"),
        (lambda: fence_table(name=None), "name"),
        (lambda: fence_table(schema=7), "schema"),
        (lambda: Fence().checker(None), "sessions"),
        (lambda: Fence().checker(sessionmaker()), "sessions"),
        (lambda: Fence().checker(ENGINE.sync_engine), "sessions"),
        (lambda: Fence().checker(async_sessionmaker), "sessions"),
        (lambda: Fence().checker(AsyncSession), "sessions"),
        (lambda: Hint(ENGINE, clock=5), "clock"),
        (lambda: Hint(ENGINE, chance=0.5), "chance"),
        (lambda: Relay({"amqp_url": AMQP}), r"Relay\(settings\)"),
        (lambda: Relay(Settings), r"Relay\(settings\).*Settings"),
        (lambda: Relay(Settings(), clock=5), "clock"),
        (lambda: Coordinator(None), r"Coordinator\(settings\)"),
        (lambda: Outbox("x").wrap(SESSIONS(), None), r"wrap\(tx, exchange\)"),
        (lambda: Outbox("x").wrap(SESSIONS(), "x" * 300), r"wrap\(tx, exchange\)"),
        (lambda: Outbox("x").wrap(SESSIONS, "e"), "AsyncSession"),
        (lambda: Outbox("x").wrap(sessionmaker()(), "e"), "AsyncSession"),
        (lambda: Outbox("x").insert(Message(source=0)), "source"),
        (lambda: Outbox("x").insert(Message(source=False)), "source"),
        (lambda: Outbox("x").insert(Message(content_type=[])), "content_type"),
        (lambda: Queue("q", delivery_limit=10**20), "delivery_limit"),
        (lambda: Queue("q", delivery_limit=-1.0), "delivery_limit"),
        (lambda: Queue("q", arguments=0), "arguments"),
        (lambda: Queue("q", arguments=[]), "arguments"),
        (lambda: Queue("q", arguments={"x-a": "\ud800"}), "x-a"),
        (lambda: Queue("q", arguments={"\ud800": 1}), "argument"),
        (lambda: Queue("q", dead_letter_routing_key="\ud800"), "dead_letter_routing_key"),
        (lambda: Binding("e", "q", "\ud800"), "routing_key"),
        (lambda: Binding("e", "q", arguments=False), "arguments"),
        (lambda: Inbox("x", SESSIONS).running(7), r"running\(amqp_url\)"),
        (lambda: Inbox("x", SESSIONS).running("http://x"), "amqp"),
        (lambda: Inbox("x", SESSIONS).running(), r"running\(amqp_url=…\)"),
        (lambda: Inbox("x", SESSIONS).running(AMQP, prefetch="5"), r"running\(prefetch=…\)"),
        (lambda: Inbox("x", SESSIONS).running(AMQP, concurrency=0), r"running\(concurrency=…\)"),
        (lambda: Inbox("x", SESSIONS).running(AMQP, drain=-1), r"running\(drain=…\)"),
        (lambda: Inbox("x", SESSIONS).running(AMQP, heartbeat="1"), r"running\(heartbeat=…\)"),
    ],
)
async def test_what_cannot_work_is_refused_where_it_is_written(make: Callable[[], object], named: str) -> None:
    """Keys, tables, times, sessions and routes of a wrong kind are named by the call that was given them."""
    with pytest.raises(UsageError if "source" not in named and "content" not in named else RelmsgError, match=named):
        make()


def test_a_secret_that_is_given_in_place_of_a_key_is_not_shown() -> None:
    """The error says that there is no key, and does not repeat the secret."""
    for make in (Signing, Encryption, lambda secret: Sender(keys=secret), lambda secret: Keys([secret])):
        with pytest.raises(UsageError) as refused:
            make(b"hunter2" * 6)  # type: ignore[arg-type]
        assert "hunter2" not in str(refused.value)


def test_what_is_plainly_meant_is_taken() -> None:
    """A timedelta for a fence's seconds, an Exchange for its name, a tuple of keys, an own provider of keys."""

    class Vault:
        def current(self) -> HmacKey:
            raise AssertionError("not asked before there is a message")

        def find(self, key_id: str) -> HmacKey | None: ...

    assert Fence(lock_seconds=timedelta(seconds=2)).lock_seconds == 2  # type: ignore[arg-type]
    assert Outbox("x").wrap(SESSIONS(), Exchange("shop")).name == "shop"
    assert Outbox("x").wrap(SESSIONS(), "").name == ""
    Signing((HmacKey("a", SECRET), HmacKey("b", SECRET)))
    Signing(Vault())
    Sender(keys=Vault())
    Sender(users={"a", "b"})
    Fence().checker(ENGINE)
    Fence().checker(lambda: SESSIONS())


def test_a_checker_needs_a_type() -> None:
    """`@half.checker` without a type is refused there: it would answer for nothing."""
    half = HalfProducer(AMQP, group="g")

    async def check(half_message: object) -> None: ...

    with pytest.raises(CheckerRefused, match="type"):
        half.checker(check)  # type: ignore[arg-type]
    for wrong in ("", " ", "a\0b", "x" * 300):
        with pytest.raises(CheckerRefused, match="type"):
            half.checker(wrong)(check)  # type: ignore[type-var]


@pytest.mark.parametrize("timeout", [timedelta(days=13), timedelta(days=365), 1e300])
def test_a_long_timeout_stays_within_what_the_server_takes(timeout: Any) -> None:
    """A handler may have a timeout of weeks: PostgreSQL's own limit of an idle transaction ends at 24 days."""
    inbox = Inbox("x", SESSIONS)
    kept: list[Any] = []
    inbox._registry.add = kept.append  # type: ignore[method-assign]
    inbox.handler("t", queue="q", timeout=timeout)(handle)
    assert 0 < int(idle_limit(kept[0])) <= 2**31 - 1


async def test_a_fence_is_made_and_pruned_with_an_engine_only() -> None:
    """A negative age would prune every row, also those of half messages that are open."""
    for engine in (None, SESSIONS, ENGINE.sync_engine):
        with pytest.raises(UsageError, match="engine"):
            await create_fence(engine)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="engine"):
            await Fence().prune(engine, timedelta(days=1))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="table"):
        await create_fence(ENGINE, "relmsg_fence")  # type: ignore[arg-type]
    for age in (timedelta(days=-1), None, "7", math.nan, timedelta(days=999_999_999)):
        with pytest.raises(UsageError, match="older_than"):
            await Fence().prune(ENGINE, age)  # type: ignore[arg-type]


async def test_a_handler_is_not_registered_by_a_decorator_without_arguments() -> None:
    """`@inbox.handler` without parentheses is no silence either."""
    with pytest.raises((HandlerRefused, TypeError), match="queue"):
        Inbox("x", SESSIONS).handler(handle)  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize("wrong", [None, 7, "order", b"{}", {"type": "a"}, Message, ["a"], [Message(type="a"), None]])
async def test_only_messages_are_published(wrong: Any) -> None:
    """Before anything is written or sent, by each way to publish."""
    publisher, half, outbox = Publisher(AMQP), HalfProducer(AMQP, group="g"), Outbox("x")
    half._running = AsyncExitStack()
    async with SESSIONS() as session:
        with pytest.raises(UsageError, match="Message"):
            await outbox.publish(session, wrong)
        with pytest.raises(UsageError, match="Message"):
            await outbox.publish_many(session, wrong)
    for publish in (publisher.publish, publisher.publish_many):
        with pytest.raises(UsageError, match="Message"):
            await publish(wrong)
    with pytest.raises(UsageError, match="Message"):
        half.begin(wrong)


async def test_relay_and_coordinator_are_stopped_by_an_event() -> None:
    """What stops them is held against its kind before anything is connected."""
    settings = Settings(database_url="postgresql+asyncpg://nobody@127.0.0.1:1/none", amqp_url=AMQP)
    for wrong in (None, asyncio.Event, 7):
        with pytest.raises(UsageError, match="stop"):
            await Relay(settings).run(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="stop"):
            await Coordinator(settings).run(wrong)  # type: ignore[arg-type]
