"""What other transactions hold, and what a handler does to its own connection, is told apart from an outage."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.broker.error_headers import REASON
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine)


@pytest.fixture(autouse=True)
async def queue(broker: Broker) -> None:
    await broker.queue(QUEUE)


@pytest.fixture
def inbox(sessions: async_sessionmaker[AsyncSession]) -> Inbox:
    return Inbox("billing", sessions)


async def test_a_row_that_another_session_holds_holds_up_its_own_message_alone(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """The others are handled while an orphaned session holds a row, nothing pauses, and the held message comes last."""
    inbox.handler("order.placed", queue=QUEUE)(effect)
    await place(broker, "probe")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1)
        async with sessions() as orphan, orphan.begin():
            row = await orphan.execute(text("SELECT source FROM relmsg.inbox_message WHERE message_id = 'probe'"))
            source = row.scalar_one()
            await orphan.execute(
                text("INSERT INTO relmsg.inbox_message (consumer, source, message_id) VALUES ('billing', :s, '0')"),
                {"s": source},
            )
            await place(broker, *map(str, range(30)))
            await settled(inbox, handled=30)
            assert "0" not in await effects(sessions)
            assert inbox.ready() is None
            await orphan.rollback()
        await settled(inbox, handled=31, failed=0)
    assert (await effects(sessions))[-1] == "0"


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_a_hot_row_at_a_strict_isolation_level_fails_no_message(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine, broker: Broker, amqp_url: str,
    level: str,
) -> None:  # fmt: skip
    """Two hundred messages that update one row are all handled, however often their transactions meet."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE hot (n int)"))
        await connection.execute(text("INSERT INTO hot VALUES (0)"))
        name = make_url(str(engine.url)).database
        await connection.execute(text(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{level}'"))
    await engine.dispose()

    @inbox.handler("order.placed", queue=QUEUE, group=1)
    async def count(session: AsyncSession) -> None:
        await session.execute(text("UPDATE hot SET n = n + 1"))

    await place(broker, *map(str, range(200)))
    async with running(inbox, amqp_url):
        await settled(inbox, handled=200, failed=0)
    async with sessions() as session:
        assert await session.scalar(text("SELECT n FROM hot")) == 200


async def ends_its_backend(session: AsyncSession) -> None:
    await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def idles_too_long(session: AsyncSession) -> None:
    await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
    await asyncio.sleep(0.5)


async def idles_too_long_and_asks(session: AsyncSession) -> None:
    await idles_too_long(session)
    await session.execute(text("SELECT 1"))


@pytest.mark.parametrize("group", [1, 50])
@pytest.mark.parametrize("end", [ends_its_backend, idles_too_long, idles_too_long_and_asks])
async def test_a_handler_that_loses_its_own_connection_again_and_again_has_failed(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str, end: Any, group: int
) -> None:
    """Its message goes to the error queue after three losses, and the others are handled meanwhile."""
    calls = 0

    @inbox.handler("order.placed", queue=QUEUE, group=group, retry=Retry(attempts=1))
    async def handler(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        if message.id == "bad":
            calls += 1
            await end(session)
        else:
            await effect(session, message)

    await place(broker, "1", "2", "bad", "3", "4")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=4, failed=1)
    assert sorted(await effects(sessions)) == ["1", "2", "3", "4"]
    assert calls <= 4
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.headers[REASON] == "connection_lost"
