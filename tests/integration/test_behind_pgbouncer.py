"""Relay, coordinator, consumer and publisher through a real PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from relmsg import HalfProducer, Hint, Inbox, Message, Outbox
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled
from tests.support.halves import coordinating
from tests.support.pgbouncer import pgbouncer
from tests.support.processes import Processes
from tests.support.relaying import emptied, relaying, waiting

Sessions = async_sessionmaker[AsyncSession]
OUTBOX = Outbox("orders")
SETTINGS = (
    "enable_seqscan",
    "enable_bitmapscan",
    "enable_sort",
    "jit",
    "jit_above_cost",
    "plan_cache_mode",
    "search_path",
    "default_transaction_isolation",
)
PUBLISHER = """
import asyncio, sys
from uuid import uuid4
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool
from relmsg import Message, Outbox

async def main():
    names = {"prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__"}
    engine = create_async_engine(sys.argv[1], poolclass=NullPool, connect_args=names)
    outbox = Outbox("orders")
    for _ in range(5):
        async with AsyncSession(engine) as session, session.begin():
            await outbox.publish(session, Message(type="t", body="x", routing_key="q"))
            await outbox.publish(session, Message(type="t", body="x", routing_key="q"))
    await engine.dispose()

asyncio.run(main())
"""


@pytest.fixture
async def pooled_url(database_url: str, engine: AsyncEngine) -> AsyncIterator[str]:
    async with engine.connect() as connection:
        name = await connection.scalar(text("SELECT current_database()"))
        await connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        await connection.commit()
    await engine.dispose()
    async with pgbouncer(database_url) as url:
        yield url


@asynccontextmanager
async def users_engine(url: str, *, pool: bool = False) -> AsyncIterator[AsyncEngine]:
    """An engine made as SQLAlchemy's documentation says for PgBouncer, also with a pool of its own before it."""
    names = {"prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__"}
    engine = (
        create_async_engine(f"{url}?prepared_statement_cache_size=0", connect_args={"statement_cache_size": 0, **names})
        if pool
        else create_async_engine(url, poolclass=NullPool, connect_args=names)
    )
    yield engine
    await engine.dispose()


async def states(engine: AsyncEngine, url: str) -> list[tuple[str, ...]]:
    """What a stranger finds on the server connections it is lent, as the settings of its session."""
    ask = "SELECT " + ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    wanted = ask + ", (SELECT count(*) FROM pg_listening_channels())::text"
    async with engine.connect() as connection:
        direct = tuple((await connection.exec_driver_sql(wanted)).one())
    strangers = [await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0) for _ in range(2)]
    try:
        found = [direct]
        for _ in range(10):  # both at a time, so that each has another server connection
            for stranger in strangers:
                await stranger.execute("BEGIN")
            for stranger in strangers:
                (row,) = await stranger.fetch(wanted)
                found.append(tuple(row.values()))
                await stranger.execute("COMMIT")
        return found
    finally:
        for stranger in strangers:
            await stranger.close()


async def test_a_relay_sends_all_and_leaves_nothing_behind_on_the_shared_connections(
    pooled_url: str,
    engine: AsyncEngine,
    sessions: Sessions,
    amqp_url: str,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Messages, a hot key, a row without a route and one that cannot be sent: each comes to its end. Whoever else is
    lent the server connections finds its own settings, and the log says once that no hints are heard."""
    caplog.set_level(logging.INFO)
    await broker.queue("q")
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, headers)"
            " VALUES ('', 'q', '', '{\"a\": 1.5}'), ('', 'nowhere', '', '{}')"
        )
    async with relaying(pooled_url, amqp_url) as relay:
        for start in range(0, 200, 50):
            async with sessions() as session, session.begin():
                await OUTBOX.publish_many(
                    session,
                    [
                        Message(type="t", body=str(n), routing_key="q", ordering_key="hot" if n % 2 else None)
                        for n in range(start, start + 50)
                    ],
                )

        async def done() -> None:
            assert (await waiting(engine), await waiting(engine, parked=True)) == (1, 1)

        await eventually(done, within=30)
        assert relay.ready() is None
        assert relay.live() is None
        found = await states(engine, pooled_url)
        assert set(found) == {found[0]}
    bodies = [int(each.body) for each in await broker.drain("q", 200)]
    assert sorted(bodies) == list(range(200))
    assert [n for n in bodies if n % 2] == list(range(1, 200, 2))
    assert [record.levelname for record in caplog.records if "hints" in record.message] == ["WARNING"]


async def test_a_relay_hears_hints_by_a_url_that_leads_past_the_pooler(
    pooled_url: str, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """With ``listen_url`` a hint reaches the relay, though a publisher sends it through the pooler."""
    await broker.queue("q")
    async with relaying(pooled_url, amqp_url, listen_url=database_url) as relay, users_engine(pooled_url) as users:
        async with Hint(users) as hint:
            outbox = Outbox("orders", wake=hint)
            for _ in range(5):
                async with AsyncSession(users) as session, session.begin():
                    await outbox.publish(session, Message(type="t", body="x", routing_key="q"))

            def heard() -> None:
                assert relay.metrics.hints._value.get() > 0

            await eventually(heard)
        await emptied(users)


async def test_a_hint_leaves_nothing_behind_on_the_shared_connections(pooled_url: str, engine: AsyncEngine) -> None:
    """Its own planner settings and isolation level are not found by whoever is lent the connection next."""
    async with users_engine(pooled_url) as users, Hint(users) as hint:
        for _ in range(5):
            hint()
            await asyncio.sleep(0.02)
    found = await states(engine, pooled_url)
    assert set(found) == {found[0]}


async def test_a_coordinator_commits_and_leaves_nothing_behind(
    pooled_url: str, engine: AsyncEngine, amqp_url: str
) -> None:
    """Half messages come into the outbox; other users of the server connections find their own settings."""
    async with coordinating(pooled_url, amqp_url), HalfProducer(amqp_url, group="shop") as half:
        for n in range(10):
            async with half.begin(Message(type="t", body=str(n), routing_key="q")):
                pass

        async def committed() -> None:
            assert await waiting(engine) == 10

        await eventually(committed, within=20)
    found = await states(engine, pooled_url)
    assert set(found) == {found[0]}


@pytest.mark.parametrize(("kind", "pool"), [("single", True), ("group", False), ("list", True)])
async def test_an_inbox_works_with_an_engine_as_sqlalchemys_documentation_makes_it(
    kind: str, pool: bool, pooled_url: str, engine: AsyncEngine, sessions: Sessions, amqp_url: str, broker: Broker
) -> None:
    """Each message takes effect once, with what its handler publishes, whichever server connection it is lent."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    ids = [str(uuid4()) for _ in range(40)]
    await place(broker, *ids, *ids[:5])
    async with users_engine(pooled_url, pool=pool) as users:
        inbox = Inbox("billing", async_sessionmaker(users), concurrency=4)
        if kind == "list":

            @inbox.handler("order.placed", queue=QUEUE)
            async def all_of_them(messages: list[Message], session: AsyncSession) -> None:
                for message in messages:
                    await effect(session, message)
                await OUTBOX.publish_many(session, [Message(type="t", body="x", routing_key="q") for _ in messages])
        else:

            @inbox.handler("order.placed", queue=QUEUE, group=1 if kind == "single" else None)
            async def one(message: Message, session: AsyncSession) -> None:
                await effect(session, message)
                await OUTBOX.publish(session, Message(type="t", body="x", routing_key="q"))

        async with running(inbox, amqp_url):
            await settled(inbox, handled=40, duplicate=5)
    assert sorted(await effects(sessions)) == sorted(ids)
    assert await waiting(engine) == 40
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM relmsg.inbox_window")) == 1


async def test_publishers_share_two_server_connections(pooled_url: str, engine: AsyncEngine) -> None:
    """Four publishers publish at a time, singly and many, also where messages are collected until the commit."""

    async def publish(outbox: Outbox, *, pool: bool) -> None:
        async with users_engine(pooled_url, pool=pool) as users:
            for n in range(5):
                async with AsyncSession(users) as session, session.begin():
                    await outbox.publish(session, Message(type="t", body=str(n), routing_key="q"))
                    await outbox.publish_many(
                        session, [Message(type="t", body=str(m), routing_key="q") for m in range(1 + n)]
                    )

    await asyncio.gather(
        *(publish(Outbox("orders", collect=collect), pool=pool) for collect in (True, False) for pool in (True, False))
    )
    assert await waiting(engine) == 4 * (5 + 15)


async def test_publishers_in_two_processes_share_server_connections(
    pooled_url: str, engine: AsyncEngine, processes: Processes
) -> None:
    """The driver numbers its statements in each process from one: neither meets those of the other."""
    both = [await processes.start(sys.executable, "-c", PUBLISHER, pooled_url) for _ in range(2)]
    for process in both:
        assert await process.wait() == 0, process.stderr
    assert await waiting(engine) == 20
