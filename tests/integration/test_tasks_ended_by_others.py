"""Tasks of relmsg that somebody else cancels, or that end by an error that nobody expected: the work goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import HalfMessage, HalfProducer, HalfState, Inbox, Message, Outbox, Resolution
from relmsg.broker.connection import Connection
from relmsg.broker.publisher import Publisher
from relmsg.broker.receipt import Unknown
from relmsg.broker.subscriber import Subscriber, _Channel
from relmsg.cli import consume
from relmsg.errors import BrokerAway
from relmsg.half.decisions import Decisions
from relmsg.half.member import Member
from relmsg.inbox.outcome import Handled
from relmsg.message import Message as Sent
from relmsg.outbox.relay import Relay
from relmsg.outbox.sender import Sender
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, left, place, running, settled
from tests.support.halves import becomes, coordinating
from tests.support.proxy import Proxy
from tests.support.relaying import emptied, relaying

SOON = {"half_check_after": 0.05, "half_check_every": 0.1}


def first_time(monkeypatch: pytest.MonkeyPatch, where: type, name: str, happens: Callable[[], Any]) -> list[int]:
    """Have something happen at the start of an asynchronous method, the first time it is called; how often it did."""
    real, met = getattr(where, name), list[int]()

    async def method(self: Any, *given: Any, **named: Any) -> Any:
        if not met:
            met.append(1)
            await happens()
        return await real(self, *given, **named)

    monkeypatch.setattr(where, name, method)
    return met


async def cancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def raised() -> None:
    raise RecursionError("odd")


async def publish(engine: AsyncEngine, *bodies: bytes) -> None:
    async with AsyncSession(engine) as session, session.begin():
        for body in bodies:
            await Outbox(source="shop").publish(session, Message(type="order.placed", body=body, routing_key=QUEUE))


async def test_a_relay_whose_batch_somebody_cancels_ends_and_loses_no_row(
    database_url: str, amqp_url: str, engine: AsyncEngine, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why it ends, because the rows of that batch would be out for ever; the next relay sends them all."""
    await broker.queue(QUEUE)
    met = first_time(monkeypatch, Sender, "_publish", cancelled)
    relay = Relay(Settings(database_url=database_url, amqp_url=amqp_url, probes=""))
    ends = asyncio.create_task(relay.run(asyncio.Event()))
    await publish(engine, b"1", b"2", b"3")
    with pytest.raises(RuntimeError, match="somebody has cancelled the task of a batch"):
        await asyncio.wait_for(ends, 30)
    assert met
    async with relaying(database_url, amqp_url):
        await emptied(engine, within=40)
    assert sorted(each.body for each in await broker.drain(QUEUE)) == [b"1", b"2", b"3"]


async def test_an_ack_whose_task_somebody_cancels_is_given_again(
    engine: AsyncEngine, broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the fast path acks are written by a task. Where it ends, no message is left unacked for ever, and none
    takes effect twice."""
    await create_effect(engine)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    await broker.queue(QUEUE)
    monkeypatch.setenv("RELMSG_BULK", "off")
    met = first_time(monkeypatch, _Channel, "_write_plainly", cancelled)
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)

    async with running(inbox, amqp_url):
        await place(broker, "1", "2")

        async def empty() -> None:
            assert await left(broker) == 0

        await eventually(lambda: _is(met, [1]), within=30)
        await place(broker, "3")
        await settled(inbox, handled=3)
    await eventually(empty, within=30)
    assert sorted(await effects(sessions)) == ["1", "2", "3"]


def _is(found: object, wanted: object) -> None:
    assert found == wanted


@pytest.mark.parametrize("happens", [cancelled, raised])
@pytest.mark.parametrize("step", ["_handle", "_answer"])
async def test_a_check_whose_task_somebody_ends_is_asked_again(
    step: str,
    happens: Callable[[], Any],
    database_url: str,
    amqp_url: str,
    engine: AsyncEngine,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The half message is decided by the next check, by the same member."""
    await broker.queue(QUEUE)
    met = first_time(monkeypatch, Member, step, happens)
    async with coordinating(database_url, amqp_url, **SOON), HalfProducer(amqp_url, group="shop") as half:

        @half.checker("order.placed")
        async def check(half_message: HalfMessage) -> Resolution:
            return Resolution.COMMIT

        message = await left_open(half)
        await becomes(engine, message.id, HalfState.COMMITTED, within=40)
        assert met


async def left_open(half: HalfProducer) -> Any:
    message = Sent(type="order.placed", body=b"x", routing_key=QUEUE)
    with suppress(ZeroDivisionError):
        async with half.begin(message):
            1 / 0  # noqa: B018
    return message


@pytest.mark.parametrize("happens", [cancelled, raised])
async def test_a_connection_whose_keeper_ends_comes_up_again(
    happens: Callable[[], Any], amqp_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """An error that nobody expected, in the midst of connecting again, is told, and it is connected all the same."""
    await broker.queue(QUEUE)
    async with Proxy.before(amqp_url) as proxy, Publisher(proxy.through(amqp_url)) as publisher:
        await publisher.publish(Sent(type="t", body=b"1", routing_key=QUEUE))
        met = first_time(monkeypatch, Connection, "_connect", happens)
        proxy.reset()

        async def published() -> None:
            with suppress(BrokerAway, Unknown):
                await publisher.publish(Sent(type="t", body=b"2", routing_key=QUEUE))
                return
            raise AssertionError("not connected yet")

        await eventually(published, within=40)
        assert met
    assert "it begins again" in caplog.text
    assert b"2" in [each.body for each in await broker.drain(QUEUE)]


@pytest.mark.parametrize("happens", [cancelled, raised])
@pytest.mark.parametrize(("where", "name"), [(Member, "_keep"), (Decisions, "_read"), (Subscriber, "run")])
async def test_a_half_producer_whose_keepers_end_goes_on(
    where: type,
    name: str,
    happens: Callable[[], Any],
    database_url: str,
    amqp_url: str,
    engine: AsyncEngine,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    """Checks are answered, and a decision is told what became of it."""
    await broker.queue(QUEUE)
    async with coordinating(database_url, amqp_url, **SOON):
        met = first_time(monkeypatch, where, name, happens)
        async with HalfProducer(amqp_url, group="shop") as half:

            @half.checker("order.placed")
            async def check(half_message: HalfMessage) -> Resolution:
                return Resolution.COMMIT

            message = await left_open(half)
            await becomes(engine, message.id, HalfState.COMMITTED, within=40)
            async with half.begin(Sent(type="order.placed", body=b"y", routing_key=QUEUE)) as tx:
                pass
            assert tx.state is HalfState.COMMITTED
            assert met
    assert "it begins again" in caplog.text


async def test_the_counts_of_each_minute_go_on_after_an_error(
    engine: AsyncEngine, broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """`relmsg consume` says that they have ended and begin again, and then tells what came of the messages."""
    caplog.set_level(logging.INFO)
    await broker.queue(QUEUE)
    monkeypatch.setattr(consume, "MINUTE", 0.05)
    inbox, stop = Inbox("billing", async_sessionmaker(engine)), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        pass

    outcomes, failed = inbox.metrics.outcomes, list[int]()

    def broken() -> Any:
        if len(failed) < 2:
            failed.append(1)
            raise RecursionError("odd")
        return outcomes()

    monkeypatch.setattr(inbox.metrics, "outcomes", broken)
    consuming = asyncio.create_task(consume._consume(inbox, Settings(amqp_url=amqp_url, probes=""), stop))

    def told() -> None:
        inbox.metrics.settled("billing", QUEUE, Handled(), 1)
        assert "counts of each minute: ended by RecursionError: odd; it begins again" in caplog.text
        assert "in the last minute handled" in caplog.text

    await eventually(told, within=30)
    stop.set()
    await asyncio.wait_for(consuming, 30)
    assert not [task for task in asyncio.all_tasks() if "counts of each minute" in task.get_name()]
