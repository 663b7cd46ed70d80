"""relmsg's own sessions are READ COMMITTED, whatever the database or role has as its default."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from relmsg import Message, Outbox
from relmsg.broker.receipt import Confirmed
from relmsg.clock import SystemClock
from relmsg.database import create_engine
from relmsg.half.decisions import Decisions
from relmsg.half.state import HalfState, Resolution
from relmsg.half.store import HalfStore
from tests.support.broker import Broker
from tests.support.relaying import emptied, relaying

OUTBOX = Outbox("orders")


async def serializable(engine: AsyncEngine, database_url: str) -> None:
    async with engine.begin() as connection:
        name = make_url(database_url).database
        await connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"))


async def test_the_polling_of_a_relay_makes_no_commit_fail(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """A4: ten serializable publishers have read what somebody then changes; the relay reads the outbox between their
    reading and their publishing. All of them commit, as they do without a relay."""
    await broker.queue("q")
    await serializable(engine, database_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE stock (left_over int)"))
        await connection.execute(text("INSERT INTO stock VALUES (0)"))
    services = create_async_engine(database_url, pool_size=12)

    def message() -> Message:
        return Message(type="t", body="x", routing_key="q")

    async with relaying(database_url, amqp_url):
        publishers = [AsyncSession(services) for _ in range(10)]
        for each in publishers:
            assert await each.scalar(text("SHOW transaction_isolation")) == "serializable"
            await each.execute(text("SELECT * FROM stock"))
        async with services.begin() as connection:
            await connection.execute(text("UPDATE stock SET left_over = 1"))
        async with AsyncSession(engine) as session, session.begin():
            await OUTBOX.publish(session, message())
        await emptied(engine)  # the relay has read and deleted since
        for each in publishers:
            await OUTBOX.publish(each, message())
            await each.commit()
            await each.close()
        await emptied(engine)
    await services.dispose()


async def test_the_coordinators_and_the_commands_sessions_are_read_committed(
    engine: AsyncEngine, database_url: str
) -> None:
    """Also where each statement is a transaction of its own."""
    await serializable(engine, database_url)
    own = create_engine(database_url)
    async with own.connect() as connection:
        assert await connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    await own.dispose()
    own = create_engine(database_url)
    store = HalfStore(own)
    await store.figures()
    async with store._engine.connect() as connection:
        assert await connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    await own.dispose()


async def test_whoever_waits_for_an_answer_is_let_go_when_the_producer_closes() -> None:
    """C1: the task that reads the answers is gone then, and nobody else would end the wait."""

    class Sender:
        async def say(self, *_: object, **__: object) -> Confirmed:
            said.set()
            return Confirmed("1")

    said = asyncio.Event()
    decisions = Decisions(Sender(), None, answer_within=3600.0, clock=SystemClock())  # type: ignore[arg-type]
    taking = asyncio.create_task(decisions.take(uuid4(), Resolution.COMMIT, is_prepared=True))
    await said.wait()
    await asyncio.sleep(0)
    await decisions.close()
    assert await asyncio.wait_for(taking, timeout=5) is HalfState.UNKNOWN
