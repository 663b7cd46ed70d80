"""What relmsg's own statements meet of other transactions holds up one message, and pauses and fails nothing."""

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from relmsg.inbox.identity import Identity
from relmsg.inbox.inbox import Inbox
from relmsg.inbox.outcome import Contended
from relmsg.inbox.starts import Starts
from relmsg.inbox.store import Store
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled

IDENTITY = Identity("billing", "shop", "1")
MADE = text("INSERT INTO relmsg.inbox_attempt (consumer, source, message_id) VALUES ('billing', 'shop', '1')")


@pytest.fixture
async def starts(engine: AsyncEngine) -> Starts:
    async with engine.begin() as connection:
        await connection.execute(MADE)
    return Starts(async_sessionmaker(engine), Store())


@pytest.mark.parametrize("work", ["forget", "counted"])
async def test_a_held_row_of_starts_is_contention_and_no_outage(starts: Starts, engine: AsyncEngine, work: str) -> None:
    """A session that holds the row of a message's starts makes that message wait a moment, and nothing more."""

    async def never() -> Contended:
        raise AssertionError("it was begun")

    async with engine.connect() as other, other.begin():
        await other.execute(text("SELECT * FROM relmsg.inbox_attempt FOR UPDATE"))
        outcome = await (starts.forget(IDENTITY) if work == "forget" else starts.counted(IDENTITY, never))
    assert isinstance(outcome, Contended)
    assert outcome.ours


async def test_a_locked_table_of_starts_is_contention_and_no_outage(starts: Starts, engine: AsyncEngine) -> None:
    """A migration that holds the table makes what asks for it wait a moment, and nothing more."""
    async with engine.connect() as other, other.begin():
        await other.execute(text("LOCK TABLE relmsg.inbox_attempt IN ACCESS EXCLUSIVE MODE"))
        assert isinstance(await starts.unfinished(IDENTITY), Contended)
    assert await starts.unfinished(IDENTITY) == 2


async def test_a_redelivered_message_steps_aside_while_its_starts_are_held(
    engine: AsyncEngine, broker: Broker, amqp_url: str
) -> None:
    """The others are handled without a pause while somebody holds the table of starts, and it is when that is over."""
    await create_effect(engine)
    sessions = async_sessionmaker(engine)
    inbox = Inbox("billing", sessions)
    inbox.handler("order.placed", queue=QUEUE)(effect)
    await broker.queue(QUEUE)
    await place(broker, "again")
    async with broker.channel() as channel:
        await channel.basic_get(QUEUE)  # and no ack: it is delivered again
    async with engine.connect() as other, other.begin():
        await other.execute(text("LOCK TABLE relmsg.inbox_attempt IN ACCESS EXCLUSIVE MODE"))
        async with running(inbox, amqp_url):
            await place(broker, *map(str, range(20)))
            await settled(inbox, handled=20)
            assert inbox.ready() is None
            assert "again" not in await effects(sessions)
            await other.rollback()
            await settled(inbox, handled=21, failed=0)
    assert (await effects(sessions))[-1] == "again"


async def test_forgetting_starts_leaves_the_users_lock_timeout(engine: AsyncEngine) -> None:
    """The short wait is for the statement of relmsg: before the commit the transaction has the user's limit again."""
    store = Store()
    async with engine.begin() as connection:
        await connection.execute(MADE)
    async with async_sessionmaker(engine)() as session:
        await session.execute(text("SET LOCAL lock_timeout = '7s'"))
        await store.forget_starts(session, IDENTITY)
        assert await session.scalar(text("SHOW lock_timeout")) == "7s"
