"""A database whose packets are held back while a handler waits for it is away, and no message's failure."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled
from tests.support.proxy import Proxy

ONCE = Retry(attempts=1)


@pytest.fixture(autouse=True)
async def queue(broker: Broker) -> None:
    await broker.queue(QUEUE)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relmsg.inbox.attempt.PROBE_SECONDS", 0.5)
    monkeypatch.setattr("relmsg.inbox.attempt.ANSWER_SECONDS", 1.0)
    monkeypatch.setattr("relmsg.inbox.deadline.GIVEN_UP_SECONDS", 0.5)


@pytest.fixture
async def near(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(database_url) as proxy:
        yield proxy


@pytest.fixture
async def inbox(proxy: Proxy, database_url: str) -> AsyncIterator[Inbox]:
    far = create_async_engine(proxy.through(database_url))
    yield Inbox("billing", async_sessionmaker(far))
    await far.dispose()


@pytest.mark.parametrize("form", ["single", "group", "list"])
async def test_a_silent_database_sends_no_message_to_the_error_queue(
    inbox: Inbox, near: async_sessionmaker[AsyncSession], proxy: Proxy, broker: Broker, amqp_url: str, form: str
) -> None:
    """A handler reaches its timeout in a statement that nobody answers, and handles the message later."""
    fell_silent = False

    def fall_silent() -> None:
        nonlocal fell_silent
        if not fell_silent:
            fell_silent = True
            proxy.blackhole()

    async def one(session: AsyncSession, message: Message) -> None:
        fall_silent()
        await effect(session, message)

    async def many(session: AsyncSession, messages: list[Message]) -> None:
        fall_silent()
        for message in messages:
            await effect(session, message)

    inbox.handler(
        "order.placed", queue=QUEUE, retry=ONCE, timeout=0.5, group={"single": 1, "group": 50, "list": 50}[form]
    )(many if form == "list" else one)
    await place(broker, "1")
    async with running(inbox, amqp_url):

        def paused() -> None:
            assert inbox.ready() is not None

        await eventually(paused, within=20)
        proxy.heal()
        proxy.reset()
        await settled(inbox, handled=1, failed=0)
    assert await effects(near) == ["1"]


@pytest.mark.parametrize("form", ["single", "group", "list"])
async def test_a_slow_statement_of_a_database_that_answers_is_the_handlers(
    inbox: Inbox, near: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str, form: str
) -> None:
    """A statement that takes longer than the timeout fails its messages, and the consumer does not pause."""

    async def one(session: AsyncSession, message: Message) -> None:
        await session.execute(text("SELECT pg_sleep(30)"))

    async def many(session: AsyncSession, messages: list[Message]) -> None:
        await session.execute(text("SELECT pg_sleep(30)"))

    inbox.handler(
        "order.placed", queue=QUEUE, retry=ONCE, timeout=0.5, group={"single": 1, "group": 50, "list": 50}[form]
    )(many if form == "list" else one)
    await place(broker, "1", "2")
    async with running(inbox, amqp_url):
        await settled(inbox, failed=2, handled=0)
        assert inbox.ready() is None
    copies = await broker.drain(f"{QUEUE}.errors")
    assert [copy.headers["relmsg-error-reason"] for copy in copies] == ["handler_timeout"] * 2


@pytest.mark.parametrize("form", ["single", "group", "list"])
@pytest.mark.parametrize("ends", [0.9, 1.1, 1.4], ids=["before", "just after", "after"])
async def test_a_silence_that_ends_around_the_deadline_is_not_the_handlers_time(
    inbox: Inbox,
    near: async_sessionmaker[AsyncSession],
    proxy: Proxy,
    broker: Broker,
    amqp_url: str,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    ends: float,
) -> None:
    """Packets held back until about the handler's timeout cost no attempt, and the handler has the rest of its time."""
    monkeypatch.undo()
    calls = 0

    async def first_waits(session: AsyncSession) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            proxy.blackhole()
            asyncio.get_running_loop().call_later(ends, proxy.heal)
            await session.execute(text("SELECT 1"))
            # relmsg asks after a quarter of the timeout; an answer that takes half a second more counts as silence.
            await asyncio.sleep(0.5)  # together with the silence more than the timeout, alone less

    async def one(session: AsyncSession, message: Message) -> None:
        await first_waits(session)
        await effect(session, message)

    async def many(session: AsyncSession, messages: list[Message]) -> None:
        await first_waits(session)
        for message in messages:
            await effect(session, message)

    inbox.handler(
        "order.placed", queue=QUEUE, retry=ONCE, timeout=1.0, group={"single": 1, "group": 50, "list": 50}[form]
    )(many if form == "list" else one)
    await place(broker, "1", "2")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2, failed=0)
    assert sorted(await effects(near)) == ["1", "2"]


@pytest.mark.parametrize("form", ["single", "group", "list"])
async def test_a_handler_that_sleeps_too_long_fails_though_the_database_answers_late_now_and_then(
    inbox: Inbox, near: async_sessionmaker[AsyncSession], proxy: Proxy, broker: Broker, amqp_url: str, form: str
) -> None:
    """What a handler does by itself for longer than its timeout fails it, also after a silence of the database."""

    async def one(session: AsyncSession, message: Message) -> None:
        proxy.blackhole()
        asyncio.get_running_loop().call_later(0.8, proxy.heal)
        await session.execute(text("SELECT 1"))
        await asyncio.sleep(30)

    async def many(session: AsyncSession, messages: list[Message]) -> None:
        await one(session, messages[0])

    inbox.handler(
        "order.placed", queue=QUEUE, retry=ONCE, timeout=1.0, group={"single": 1, "group": 50, "list": 50}[form]
    )(many if form == "list" else one)
    await place(broker, "1")
    async with running(inbox, amqp_url):
        await settled(inbox, failed=1, handled=0)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.headers["relmsg-error-reason"] == "handler_timeout"


async def test_a_timeout_of_the_handlers_own_during_a_silence_is_not_its_failure(
    inbox: Inbox, near: async_sessionmaker[AsyncSession], proxy: Proxy, broker: Broker, amqp_url: str
) -> None:
    """A handler that gives a statement up while the packets are held is called again, at no attempt."""
    calls = 0

    @inbox.handler("order.placed", queue=QUEUE, retry=ONCE, timeout=2.0, group=1)
    async def handler(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            proxy.blackhole()
            asyncio.get_running_loop().call_later(1.6, proxy.heal)
            async with asyncio.timeout(1.5):
                await effect(session, message)
        await effect(session, message)

    await place(broker, "1")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1, failed=0)
    assert calls == 2
    assert await effects(near) == ["1"]
