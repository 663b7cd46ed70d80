"""Who publishes can say so: after the commit, once, and at nobody's cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from relmsg import Hint, Message, Outbox
from relmsg.clock import SystemClock
from relmsg.errors import UsageError
from relmsg.outbox.relay import Relay
from relmsg.schema import tables
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker

MESSAGE = Message(type="order.placed", body={"id": 7}, exchange="", routing_key="orders")


class Woken:
    """Counts the calls, and remembers the loop they came on."""

    def __init__(self) -> None:
        self.calls = 0
        self.loops: list[asyncio.AbstractEventLoop] = []

    def __call__(self) -> None:
        self.calls += 1
        self.loops.append(asyncio.get_running_loop())


class NoPeriods(SystemClock):
    """A clock on which nothing periodic comes round again."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def deaf(database_url: str, amqp_url: str, **given: Any) -> AsyncIterator[Relay]:
    """A relay that looks for rows at its start and when it is woken, and otherwise after a minute."""
    settings = Settings(database_url=database_url, amqp_url=amqp_url, probes="", poll_min=60.0, poll_max=60.0, **given)
    relay, stop = Relay(settings, clock=NoPeriods()), asyncio.Event()
    task = asyncio.create_task(relay.run(stop))

    async def owns_all() -> None:
        assert relay.metrics.slots._value.get() == 64

    try:
        await eventually(owns_all, within=20)
        yield relay
    finally:
        stop.set()
        await task


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture(params=[False, True], ids=["at once", "collecting"])
def outbox(request: pytest.FixtureRequest, woken: Woken) -> Outbox:
    return Outbox("orders", wake=woken, collect=request.param)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_commit_wakes_once_whatever_it_published(
    outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Three publishes in one transaction are one call, on the event loop, and none comes before the commit."""
    async with sessions() as session, session.begin():
        await outbox.publish(session, MESSAGE)
        await outbox.publish_many(session, [MESSAGE, MESSAGE])
        await turns()
        assert woken.calls == 0
    await turns()
    assert woken.calls == 1
    assert woken.loops == [asyncio.get_running_loop()]


async def test_the_messages_are_committed_when_the_call_comes(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A deferred constraint that takes its time in COMMIT: the call comes after it, and the row can be read then."""
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    look: list[asyncio.Task[None]] = []

    async def count() -> None:
        async with engine.connect() as connection:
            seen.set_result(len(list(await connection.execute(select(tables().outbox_message.c.id)))))

    outbox = Outbox("orders", wake=lambda: look.append(asyncio.create_task(count())))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE slow (id int)"))
        await connection.execute(
            text(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END'"
            )
        )
        await connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION wait()"
            )
        )
    async with sessions() as session, session.begin():
        await outbox.publish(session, MESSAGE)
        await session.execute(text("INSERT INTO slow VALUES (1)"))
    assert await asyncio.wait_for(seen, 10) == 1


async def test_a_rollback_wakes_nobody(
    outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Neither a rollback nor a session closed without a commit; and the next commit wakes for itself only."""
    async with sessions() as session:
        await session.begin()
        await outbox.publish(session, MESSAGE)
        await session.rollback()
        await session.begin()
        await outbox.publish(session, MESSAGE)
        await session.close()
        async with session.begin():
            await session.execute(text("SELECT 1"))
    await turns()
    assert woken.calls == 0


async def test_a_commit_that_fails_wakes_nobody(
    engine: AsyncEngine, outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A deferred constraint fails the COMMIT itself; the connection's next commit does not wake in its place."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE one (id int PRIMARY KEY)"))
        await connection.execute(text("CREATE TABLE many (one int REFERENCES one DEFERRABLE INITIALLY DEFERRED)"))
    async with sessions() as session:
        await session.begin()
        await outbox.publish(session, MESSAGE)
        await session.execute(text("INSERT INTO many VALUES (1)"))
        with pytest.raises(DBAPIError):
            await session.commit()
        await session.rollback()
        async with session.begin():
            await session.execute(text("SELECT 1"))
    await turns()
    assert woken.calls == 0


async def test_a_commit_that_postgresql_rolls_back_wakes_nobody(
    woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """After a swallowed error COMMIT means ROLLBACK, and PostgreSQL reports no error."""
    outbox = Outbox("orders", wake=woken)
    async with sessions() as session, session.begin():
        await outbox.publish(session, MESSAGE)
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / 0"))
    await turns()
    assert woken.calls == 0


async def test_an_error_that_a_savepoint_healed_does_not_count(
    outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """What was published outside of the savepoint is committed, and wakes."""
    async with sessions() as session, session.begin():
        await outbox.publish(session, MESSAGE)
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("SELECT 1 / 0"))
    await turns()
    assert woken.calls == 1


async def test_a_savepoint_wakes_only_with_the_commit_around_it(
    outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A released savepoint is no commit; one that is rolled back leaves nothing to wake for."""
    async with sessions() as session:
        async with session.begin():
            async with session.begin_nested():
                await outbox.publish(session, MESSAGE)
            await turns()
            assert woken.calls == 0
        await turns()
        assert woken.calls == 1
        async with session.begin():
            savepoint = await session.begin_nested()
            await outbox.publish(session, MESSAGE)
            await savepoint.rollback()
    await turns()
    assert woken.calls == 1


async def test_a_connections_commit_wakes_too(engine: AsyncEngine, outbox: Outbox, woken: Woken) -> None:
    """Each transaction of an AsyncConnection wakes for itself."""
    async with engine.connect() as connection:
        for expected in (1, 2):
            async with connection.begin():
                await outbox.publish(connection, MESSAGE)
            await turns()
            assert woken.calls == expected


async def test_a_commit_inside_of_a_greenlet_wakes_outside_of_it(
    outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Sync code that commits, as run_sync runs it, ends before the call comes: on the event loop, in no greenlet."""
    during: list[int] = []

    def commit(session: Session) -> None:
        session.commit()
        during.append(woken.calls)

    async with sessions() as session:
        await session.begin()
        await outbox.publish(session, MESSAGE)
        await session.run_sync(commit)
    await turns()
    assert (during, woken.calls) == ([0], 1)


async def test_a_wake_that_raises_harms_nobody(
    sessions: async_sessionmaker[AsyncSession], woken: Woken, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands, the error is logged once, and the wakes of other outboxes are still called."""

    def broken() -> None:
        raise RuntimeError("no bell")

    async with sessions() as session, session.begin():
        await Outbox("orders", wake=broken).publish(session, MESSAGE)
        await Outbox("orders", wake=woken, collect=True).publish(session, MESSAGE)
    await turns()
    assert woken.calls == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_lost_connection_wakes_nobody(
    engine: AsyncEngine, outbox: Outbox, woken: Woken, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A COMMIT that PostgreSQL never answered is not taken for one."""
    async with sessions() as session:
        await session.begin()
        await outbox.publish(session, MESSAGE)
        backend = await session.scalar(text("SELECT pg_backend_pid()"))
        async with engine.connect() as other:
            await other.execute(text("SELECT pg_terminate_backend(:backend, 5000)"), {"backend": backend})
        with pytest.raises(DBAPIError):
            await session.commit()
    await turns()
    assert woken.calls == 0


async def test_a_cancelled_publish_cannot_be_committed(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Whoever swallows the cancellation finds the connection gone, not a COMMIT that quietly rolls back."""
    async with engine.begin() as lock:
        await lock.execute(text("LOCK TABLE relmsg.outbox_message IN ACCESS EXCLUSIVE MODE"))
        async with sessions() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await Outbox("orders").publish(session, MESSAGE)
            with pytest.raises(PendingRollbackError):
                await session.commit()


def test_a_coroutine_function_is_refused() -> None:
    """Nobody would await it."""

    async def wake() -> None: ...

    with pytest.raises(UsageError, match="not a coroutine function"):
        Outbox("orders", wake=wake)


@pytest.fixture
def another_driver(engine: AsyncEngine) -> Iterator[AsyncEngine]:
    engine.sync_engine.dialect.driver = "another"
    yield engine
    engine.sync_engine.dialect.driver = "asyncpg"


async def test_another_driver_publishes_but_does_not_wake(another_driver: AsyncEngine, woken: Woken) -> None:
    """Through SQLAlchemy's own INSERT the row is the same; wake and collect say that they need asyncpg."""
    async with another_driver.begin() as connection:
        await Outbox("orders").publish(connection, MESSAGE)
        await Outbox("orders").publish_many(connection, [MESSAGE, MESSAGE])
        for options in ({"wake": woken}, {"collect": True}):
            with pytest.raises(UsageError, match="asyncpg"):
                await Outbox("orders", **options).publish(connection, MESSAGE)
    async with another_driver.connect() as connection:
        rows = list(await connection.scalars(select(tables().outbox_message.c.headers)))
    assert rows == [{}, {}, {}]


async def test_a_woken_relay_reads_at_once(
    database_url: str, amqp_url: str, broker: Broker, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A relay in the same process sends what was committed although its next poll is a minute away."""
    await broker.queue("orders")
    async with deaf(database_url, amqp_url, listen=False) as relay:
        async with sessions() as session, session.begin():
            await Outbox("orders", wake=relay.wake).publish(session, MESSAGE)
        await eventually(partial(arrived, broker), within=10)


async def test_a_hinted_relay_reads_at_once(
    database_url: str, amqp_url: str, broker: Broker, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A relay that listens sends what a hint told it of, and counts the hint."""
    await broker.queue("orders")
    async with deaf(database_url, amqp_url) as relay, Hint(engine) as hint:
        await eventually(partial(listens, engine), within=10)
        hint()
        await eventually(partial(heard, relay, 1), within=10)
        async with sessions() as session, session.begin():
            await Outbox("orders", wake=hint).publish(session, MESSAGE)
        await eventually(partial(arrived, broker), within=10)
        await eventually(partial(heard, relay, 2), within=10)


async def heard(relay: Relay, hints: int) -> None:
    assert relay.metrics.hints._value.get() == hints


async def arrived(broker: Broker) -> None:
    assert len(await broker.drain("orders")) == 1


async def listens(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")) == 1
