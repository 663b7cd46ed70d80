"""A database whose packets are held back while a handler waits for it is away, and no message's failure."""

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
