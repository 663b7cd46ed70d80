"""A consumer that lives: what ends without an outcome is noticed, and nothing waits for somebody who has left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg.clock import SystemClock
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, left, place, running, settled
from tests.support.proxy import Proxy


class Ahead(SystemClock):
    """The machine's clock, moved on by the test."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def queue(broker: Broker) -> str:
    return await broker.queue(QUEUE)


async def test_a_cancelled_task_gives_its_message_back(
    sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Somebody cancels the task of a message: live says so, and the message is delivered again and takes effect."""
    inbox, tasks = Inbox("billing", sessions), list[asyncio.Task[Any] | None]()
    begun = asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        tasks.append(asyncio.current_task())
        if len(tasks) == 1:
            begun.set()
            await asyncio.Event().wait()
        await effect(session, message)

    await place(broker, "7")
    async with running(inbox, amqp_url):
        await asyncio.wait_for(begun.wait(), 20)
        assert inbox.live() is None
        assert tasks[0] is not None
        tasks[0].cancel()
        await settled(inbox, handled=1)
        assert "ended without an outcome" in (inbox.live() or "")
    assert await effects(sessions) == ["7"]
    assert await left(broker) == 0


async def test_a_message_that_cancels_its_own_task_ends_in_the_error_queue(
    sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """It is delivered again and again and counted, until it is taken for one that kills its worker; others go on."""
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        task = asyncio.current_task()
        if message.id == "bad" and task is not None:
            task.cancel()
            await asyncio.Event().wait()
        await effect(session, message)

    await place(broker, "bad", "1", "2")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2, failed=1)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.message_id == "bad"
    assert sorted(await effects(sessions)) == ["1", "2"]
    assert await left(broker) == 0


async def test_a_validator_that_raises_no_exception_costs_only_its_message(
    sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A panic in a Rust extension while a body is read: that message is undecodable, those that came with it go on."""
    inbox = Inbox("billing", sessions)

    class Panic(BaseException):
        pass

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(event: dict, message: Message, session: AsyncSession) -> None:  # type: ignore[type-arg]
        await effect(session, message)

    handler = inbox._registry.find(QUEUE, "order.placed")
    decode = type(handler).decode

    def panics(self: Any, message: Message) -> Any:
        if message.id == "bad":
            raise Panic
        return decode(self, message)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(handler), "decode", panics)
        await place(broker, "bad", "1", "2")
        async with running(inbox, amqp_url):
            await settled(inbox, handled=2, failed=1)
            assert inbox.live() is None
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.headers["relmsg-error-reason"] == "undecodable"


async def test_deliveries_that_stand_still_for_a_minute_make_the_process_not_live(
    sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A handler that swallows the end of its time: live says nothing within its time, and tells it a minute later."""
    clock = Ahead()
    inbox, begun, over = Inbox("billing", sessions, clock=clock, drain=0.1), asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE, timeout=0.05, retry=Retry(attempts=1))
    async def handle(message: Message) -> None:
        begun.set()
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    async with running(inbox, amqp_url):
        clock.seconds += 3600
        await asyncio.sleep(1.1)  # the event loop's own sign of life
        assert inbox.live() is None  # nothing is here: nothing has to move
        await place(broker, "7")
        await asyncio.wait_for(begun.wait(), 20)
        assert inbox.live() is None
        clock.seconds += 55

        def moves() -> None:
            assert inbox.live() is None

        def stands_still() -> None:
            assert "1 deliveries are here, and nothing has moved" in (inbox.live() or "")

        await eventually(moves)
        clock.seconds += 20
        await eventually(stands_still)
        over.set()
        await settled(inbox, failed=1)
        await eventually(moves)


class Fast(SystemClock):
    """A clock that runs thirty times as fast: a minute is two seconds."""

    def monotonic(self) -> float:
        return super().monotonic() * 30

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 30)


async def test_a_long_pause_gives_the_deliveries_back(
    broker: Broker, amqp_url: str, database_url: str, queue: str, sessions: Any
) -> None:
    """The database is away for more than a minute: the broker has all messages again, none of them waits unacked; when
    it answers each takes effect once."""
    async with Proxy.before(database_url) as proxy:
        engine = create_async_engine(proxy.through(database_url))
        inbox = Inbox("billing", async_sessionmaker(engine), clock=Fast())

        @inbox.handler("order.placed", queue=QUEUE)
        async def handle(message: Message, session: AsyncSession) -> None:
            await effect(session, message)

        ids = [str(number) for number in range(50)]

        async def given_back() -> None:
            assert await broker.consumers(QUEUE) == 0
            assert await broker.count(QUEUE) == len(ids)
            assert "database" in (inbox.ready() or "")
            assert inbox.live() is None

        def consumes() -> None:
            assert inbox.ready() is None

        async with running(inbox, amqp_url):
            await proxy.refuse()
            proxy.reset()
            await place(broker, *ids)
            await eventually(given_back, within=30)
            await proxy.accept()
            await settled(inbox, handled=len(ids))
            await eventually(consumes)
            await place(broker, "later")
            await settled(inbox, handled=len(ids) + 1)
        await engine.dispose()
    assert sorted(await effects(sessions)) == sorted([*ids, "later"])
    assert await left(broker) == 0


async def test_a_short_pause_keeps_the_deliveries(
    broker: Broker, amqp_url: str, database_url: str, queue: str, sessions: Any
) -> None:
    """A database that is back within the minute costs no message a second delivery."""
    async with Proxy.before(database_url) as proxy:
        engine = create_async_engine(proxy.through(database_url))
        inbox = Inbox("billing", async_sessionmaker(engine))

        @inbox.handler("order.placed", queue=QUEUE)
        async def handle(message: Message, session: AsyncSession) -> None:
            await effect(session, message)

        def paused() -> None:
            assert "database" in (inbox.ready() or "")

        async with running(inbox, amqp_url):
            await proxy.refuse()
            proxy.reset()
            await place(broker, "1", "2")
            await eventually(paused)
            assert await broker.consumers(QUEUE) == 1
            await proxy.accept()
            await settled(inbox, handled=2, duplicate=0, unsettled=0)
        await engine.dispose()
