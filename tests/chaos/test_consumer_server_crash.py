"""A handler that crashes the whole server is found out; a server or network that fails by itself accuses nobody."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from compose.local import Services
from relmsg.broker.error_headers import REASON
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


@pytest.fixture
async def sessions(engine: AsyncEngine) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    await create_effect(engine)
    await engine.dispose()
    own = create_async_engine(engine.url, pool_pre_ping=True)
    yield async_sessionmaker(own)
    await recovered(async_sessionmaker(own))
    await own.dispose()


async def recovered(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Wait until the server answers again."""

    async def answers() -> None:
        try:
            async with sessions() as session:
                await session.execute(text("SELECT 1"))
        except Exception as error:
            raise AssertionError("it does not answer") from error

    await eventually(answers, within=60)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(database_url) as proxy:
        yield proxy


async def backend(session: AsyncSession) -> int:
    found = await session.scalar(text("SELECT pg_backend_pid()"))
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("group", [1, 50])
async def test_a_handler_that_crashes_the_server_is_found_out_alone(
    sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str, group: int
) -> None:
    """Its message goes to the error queue after three crashes, and those that it took along are all handled."""
    inbox = Inbox("billing", sessions, concurrency=4)
    crashes, beside = 0, 0
    under_way: set[str] = set()

    @inbox.handler("order.placed", queue=QUEUE, group=group, retry=ONCE)
    async def handler(session: AsyncSession, message: Message) -> None:
        nonlocal crashes, beside
        under_way.add(str(message.id))
        try:
            if message.id == "bad":
                crashes += 1
                beside = len(under_way) - 1
                os.kill(await backend(session), signal.SIGKILL)
            await effect(session, message)
            await asyncio.sleep(0.05)
        finally:
            under_way.discard(str(message.id))

    good = [str(each) for each in range(12)]
    await place(broker, *good[:4], "bad", *good[4:])
    async with running(inbox, amqp_url):
        await settled(inbox, failed=1, within=120)
        await recovered(sessions)

        async def all_are_handled() -> None:  # one whose commit was not answered comes to its end as a duplicate
            assert sorted(await effects(sessions), key=int) == good

        await eventually(all_are_handled, within=60)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.headers[REASON] == "connection_lost"
    assert crashes == 3
    assert beside == 0


Fails = Callable[[], Awaitable[None]]


async def handled_in_spite_of(
    fails: Fails, near: async_sessionmaker[AsyncSession], url: str, broker: Broker, amqp_url: str, group: int
) -> None:
    """A message whose handler is running in each of four failures is handled by the fifth call."""
    far = create_async_engine(url)
    inbox = Inbox("billing", async_sessionmaker(far))
    calls = 0

    @inbox.handler("order.placed", queue=QUEUE, group=group, retry=ONCE)
    async def handler(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        calls += 1
        await effect(session, message)
        if calls <= 4:
            await fails()
            await session.execute(text("SELECT 1"))

    await place(broker, "1")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1, failed=0, within=120)
    assert calls == 5
    assert await effects(near) == ["1"]
    await far.dispose()


@pytest.mark.parametrize("group", [1, 50])
async def test_a_network_that_breaks_again_and_again_accuses_nobody(
    sessions: async_sessionmaker[AsyncSession], proxy: Proxy, broker: Broker, amqp_url: str, database_url: str,
    group: int,
) -> None:  # fmt: skip
    """All connections are reset four times while one handler runs, and its message is handled."""

    async def reset() -> None:
        proxy.reset()

    await handled_in_spite_of(reset, sessions, proxy.through(database_url), broker, amqp_url, group)


async def test_a_server_that_is_restarted_again_and_again_accuses_nobody(
    sessions: async_sessionmaker[AsyncSession], services: Services, broker: Broker, amqp_url: str, database_url: str
) -> None:
    """PostgreSQL is restarted four times while one handler runs, and its message is handled."""

    async def restart() -> None:
        await asyncio.to_thread(services.stop_postgres)
        await asyncio.to_thread(services.start_postgres)

    await handled_in_spite_of(restart, sessions, database_url, broker, amqp_url, 1)


async def test_a_crash_of_somebody_elses_accuses_nobody(
    sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str, database_url: str
) -> None:
    """Another client's server process is killed four times while one handler runs, and its message is handled."""

    async def crash() -> None:
        other = create_async_engine(database_url)
        async with other.connect() as connection:
            os.kill(int(await connection.scalar(text("SELECT pg_backend_pid()")) or 0), signal.SIGKILL)
        await other.dispose()

    await handled_in_spite_of(crash, sessions, database_url, broker, amqp_url, 1)
