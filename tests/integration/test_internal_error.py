"""Faults of relmsg itself, met with one message: they are this message's outcome, and nobody else's."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.broker import error_exchange
from relmsg.broker.delivery import Delivery
from relmsg.half.coordinator import Coordinator
from relmsg.half.intake import Intake as HalfIntake
from relmsg.half.producer import HalfProducer
from relmsg.half.protocol import COORDINATOR
from relmsg.half.store import HalfStore
from relmsg.inbox import arrival
from relmsg.inbox.attempt import Attempts, Task
from relmsg.inbox.identity import Identity
from relmsg.inbox.inbox import Inbox
from relmsg.inbox.intake import Intake
from relmsg.inbox.store import Store
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, left, place, running, sample, settled
from tests.support.halves import coordinating, outbox_rows
from tests.support.raw_amqp import RawPublisher, properties, table

ERRORS = f"{QUEUE}.errors"
KINDS = (RecursionError, MemoryError, UnicodeError, OverflowError)
STAGES: dict[str, tuple[Any, str]] = {
    "opening the body": (arrival, "opened"),
    "the identity": (arrival, "identify"),
    "decompression": (arrival, "decompressed"),
    "the line": (Intake, "_line"),
    "the inbox row of one": (Store, "once"),
    "the attempts": (Attempts, "handle"),
}
WAYS = ("one", "group", "list")


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


def inbox_of(way: str, sessions: Any) -> Inbox:
    inbox = Inbox("billing", sessions)
    options: dict[str, Any] = {"queue": QUEUE, "retry": Retry(attempts=1), "group": 1 if way == "one" else 50}
    if way == "list":

        @inbox.handler("order.placed", **options)
        async def all_of_them(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await effect(session, message)
    else:

        @inbox.handler("order.placed", **options)
        async def handle(message: Message, session: AsyncSession) -> None:
            if message.body == b"fail":
                raise ValueError("no")
            await effect(session, message)

    return inbox


def is_bad(given: object) -> bool:
    """Whether one of the arguments belongs to the bad message."""
    if isinstance(given, list | tuple) and not isinstance(given, Identity):
        return any(map(is_bad, given))
    if isinstance(given, Message | Delivery | Task):
        message = given if isinstance(given, Message) else given.message
        return message.id == "bad"
    return isinstance(given, Identity) and given.message_id == "bad"


def break_for_bad(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, kind: type[Exception]) -> list[int]:
    """Have a function raise for the bad message; how often it did."""
    real, raised = getattr(where, name), list[int]()

    def broken(*given: Any, **named: Any) -> Any:
        if any(is_bad(each) for each in (*given, *named.values()) if not isinstance(each, Connection)):
            raised.append(1)
            raise kind("odd")
        return real(*given, **named)

    monkeypatch.setattr(where, name, broken)
    return raised


@pytest.mark.parametrize(
    ("stage", "way"),
    # A group whose statements fail is handled one by one.
    [(stage, way) for stage in STAGES for way in WAYS if way == "one" or stage != "the attempts"],
)
async def test_a_fault_met_with_one_message_is_its_outcome(
    stage: str, way: str, sessions: Any, broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message waits in the error queue with the reason internal_error; its neighbours take effect, and the consumer
    is alive and ready."""
    await broker.queue(QUEUE)
    kind = KINDS[(list(STAGES).index(stage) + WAYS.index(way)) % len(KINDS)]
    raised = break_for_bad(monkeypatch, *STAGES[stage], kind)
    if stage == "the inbox row of one":
        break_for_bad(monkeypatch, Store, "once_each", kind)
    if stage == "the line":  # it is asked for by the handler, whose type is the message's
        monkeypatch.undo()
        raised = break_line(monkeypatch, kind)
    ids = [str(number) for number in range(10)]
    # With headers and compressed, so that each stage has work to do.
    packed = {"body": gzip.compress(b"{}"), "content_encoding": "gzip", "headers": {"tenant": "a"}}
    await place(broker, *ids[:5], "bad", *ids[5:], **packed)
    inbox = inbox_of(way, sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=10, failed=1)
        assert (inbox.live(), inbox.ready()) == (None, None)
    assert raised
    assert sample(inbox, "relmsg_consumer_failures_total", reason="internal_error") == 1
    (copy,) = await broker.drain(ERRORS)
    assert (copy.message_id, copy.headers["relmsg-error-reason"]) == ("bad", "internal_error")
    assert sorted(await effects(sessions)) == ids
    assert await left(broker) == 0


def break_line(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> list[int]:
    real, raised = Intake._put, list[int]()

    def put(self: Intake, came: Any) -> None:
        line = self._line

        def broken(queue: str, handler: Any) -> Any:
            if handler is not None:
                raised.append(1)
                raise kind("odd")
            return line(queue, handler)

        if came.delivery.message.id == "bad":
            self._line = broken  # type: ignore[method-assign]
        try:
            real(self, came)
        finally:
            self.__dict__.pop("_line", None)

    monkeypatch.setattr(Intake, "_put", put)
    return raised


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_copy_can_always_be_made(
    kind: type[Exception], sessions: Any, broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the diagnosis cannot be written, the copy says the reason, and the hash of the body under a new id."""
    await broker.queue(QUEUE)
    raised = break_for_bad(monkeypatch, error_exchange, "error_headers", kind)
    await place(broker, "bad", body=b"fail")
    await place(broker, "1", "2")
    inbox = inbox_of("one", sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2, failed=1)
        assert (inbox.live(), inbox.ready()) == (None, None)
    assert raised
    (copy,) = await broker.drain(ERRORS)
    assert copy.headers["relmsg-error-reason"] == "handler_failed"
    assert copy.headers["relmsg-body-size"] == 4
    assert copy.message_id != "bad"
    assert await left(broker) == 0


def noise(size: int) -> bytes:
    """Text that PostgreSQL cannot compress."""
    return random.Random(size).randbytes(size // 2).hex().encode()


@pytest.mark.parametrize("way", WAYS)
async def test_an_id_that_no_index_holds_keeps_nobody_waiting(
    way: str, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """An id of 60 kB, in the header into which RabbitMQ moves ids of AMQP 1.0, is remembered by its hash: twice
    delivered, its message takes effect once."""
    await broker.queue(QUEUE)
    huge = b"S" + (60_000).to_bytes(4, "big") + noise(60_000)
    async with RawPublisher(amqp_url) as raw:
        for _ in range(2):
            told = properties(message_id=b"x", type=b"order.placed", headers=table((b"x-message-id", huge)))
            assert await raw.publish(QUEUE, told)
    await place(broker, *map(str, range(10)))
    inbox = inbox_of(way, sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=11, duplicate=1)
    assert await left(broker) == 0


REFUSAL = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.message_id = 'bad' THEN RAISE EXCEPTION USING errcode = '%s', message = 'odd'; END IF; RETURN NEW;
END $$;
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", ["22001", "22P05", "54000"])
async def test_values_that_postgresql_refuses_keep_nobody_waiting(
    code: str, way: str, engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """Where PostgreSQL cannot store what the inbox remembers of one message, as in a database that is not UTF-8, that
    message alone goes to the error queue, also when it comes a second time."""
    async with engine.begin() as connection:
        await connection.execute(text(REFUSAL % code))
        await connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON relmsg.inbox_message FOR EACH ROW "
                "EXECUTE FUNCTION public.refuse()"
            )
        )
    await broker.queue(QUEUE)
    await place(broker, *map(str, range(5)), "bad", *map(str, range(5, 10)))
    inbox = inbox_of(way, sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=10, failed=1)
        assert (inbox.live(), inbox.ready()) == (None, None)
    (copy,) = await broker.drain(ERRORS)
    assert (copy.message_id, copy.headers["relmsg-error-reason"]) == ("bad", "internal_error")


HALF_STAGES: dict[str, tuple[Any, str]] = {
    "reading": (HalfIntake, "_forbidden"),
    "storing": (HalfStore, "prepare"),
    "noting": (HalfIntake, "_note"),
}


@pytest.mark.parametrize("stage", HALF_STAGES)
async def test_a_fault_met_with_one_half_message_ends_no_coordinator(
    stage: str, database_url: str, amqp_url: str, engine: AsyncEngine, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery waits in the coordinators' error queue, it is counted, and other half messages are committed."""
    await broker.queue(QUEUE)
    kind = KINDS[list(HALF_STAGES).index(stage)]
    real: Callable[..., Any] = getattr(HALF_STAGES[stage][0], HALF_STAGES[stage][1])

    def broken(*given: Any, **named: Any) -> Any:
        if any(getattr(getattr(each, "envelope", None), "type", None) == "bad" for each in given):
            raise kind("odd")
        return real(*given, **named)

    monkeypatch.setattr(*HALF_STAGES[stage], broken)
    async with coordinating(database_url, amqp_url) as coordinator:
        async with HalfProducer(amqp_url, group="g") as half:
            for kind_of in ("bad", "good"):
                async with half.begin(Message(type=kind_of, routing_key=QUEUE, body=b"x")):
                    pass

        async def both_ended() -> None:
            assert "good" in {row.type for row in await outbox_rows(engine)}
            assert faults_of(coordinator) >= 1
            assert await broker.count(f"{COORDINATOR}.errors") >= 1

        await eventually(both_ended, within=60)
        assert (coordinator.live(), coordinator.ready()) == (None, None)
    copies = await broker.drain(f"{COORDINATOR}.errors")
    assert copies[0].headers["relmsg-error-reason"] == "internal_error"


def faults_of(coordinator: Coordinator) -> float:
    return coordinator.metrics.registry.get_sample_value("relmsg_half_internal_errors_total") or 0
