"""In a database where somebody else may create functions in ``public``, relmsg calls none of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from relmsg import HalfMessage, HalfProducer, Message, Outbox, Resolution, migrate
from relmsg.database import create_engine
from relmsg.half.fence import Fence, create_fence
from relmsg.inbox.identity import Identity
from relmsg.inbox.store import Store
from relmsg.outbox.backlog import Backlog
from relmsg.outbox.driver import Driver
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.hostile import set_traps, sprung
from tests.support.pgbouncer import pgbouncer
from tests.support.processes import Processes
from tests.support.relaying import waiting


@pytest.fixture
async def own_session(database_url: str) -> AsyncIterator[AsyncSession]:
    """A session as an application has one, on one connection that plans every statement anew.

    asyncpg asks PostgreSQL for array types in words that a trap would catch; that is done before there are traps.
    """
    arguments = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, connect_args=arguments)
    await create_fence(engine)
    async with async_sessionmaker(engine, expire_on_commit=False)() as session:
        for kind, value in (("text", "x"), ("uuid", str(uuid4())), ("varchar", "x"), ("bytea", b"x")):
            await session.execute(text(f"SELECT CAST(:x AS {kind}[])"), {"x": [value]})
        await session.rollback()
        yield session
    await engine.dispose()


async def test_an_engine_of_relmsg_finds_names_in_pg_catalog_only(database_url: str) -> None:
    """A function, an operator and a table of ``public`` do not exist for a statement on an engine of relmsg's."""
    await set_traps(database_url)
    engine = create_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        assert await connection.scalar(text("SHOW search_path")) == "pg_catalog"
        assert (await connection.scalars(text("SELECT unnest('{1,2}'::bigint[])"))).all() == [1, 2]
        assert await connection.scalar(text("SELECT 'a'::varchar = 'a'::text")) is True
    await engine.dispose()
    assert await sprung(database_url) == {}


async def test_through_a_pooler_the_search_path_is_that_of_each_transaction(database_url: str) -> None:
    """Where PgBouncer takes no startup parameter, transactions and single statements of relmsg's have the path, and the
    application that gets the server connection next has its own."""
    async with pgbouncer(database_url) as url:
        engine = create_engine(url)
        driver = Driver(engine)
        async with engine.begin() as connection:
            assert await connection.scalar(text("SHOW search_path")) == "pg_catalog"
        for _ in range(3):
            assert (await driver.fetch("SHOW search_path"))[0][0] == "pg_catalog"
        await driver.close()
        await engine.dispose()
        arguments = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        users = create_async_engine(url, poolclass=NullPool, connect_args=arguments)
        for _ in range(3):
            async with users.connect() as connection:
                assert await connection.scalar(text("SHOW search_path")) == '"$user", public'
        await users.dispose()


async def test_whoever_shadows_functions_is_not_called_by_a_users_session(
    own_session: AsyncSession, database_url: str
) -> None:
    """What relmsg writes in the user's own session, under the user's search path, calls PostgreSQL's functions only."""
    await set_traps(database_url)
    outbox, store, fence = Outbox("orders"), Store(), Fence()
    one = Message(type="a", exchange="e", body=b"1", expiration=60)
    alike = [Message(type="a", exchange="e", body=b"1") for _ in range(3)]
    varied = [Message(type=str(n), exchange=f"e{n}", body=b"%d" % n, ordering_key=str(n)) for n in range(3)]
    await own_session.begin()
    await outbox.publish(own_session, one)
    await outbox.publish_many(own_session, alike)
    await outbox.publish_many(own_session, varied)
    await own_session.execute(outbox.insert(Message(type="b", exchange="e", body=b"1", expiration=60)))
    await own_session.commit()

    identities = [Identity("billing", "orders", str(n)) for n in range(3)]
    connection = await own_session.connection()
    for _ in range(2):
        await connection.run_sync(store.once, identities[0])
        new = await connection.run_sync(store.once_each, identities)
    await connection.run_sync(store.forget_each, identities, new.written_by)
    for _ in range(2):
        await store.start(own_session, identities[0])
    assert await store.starts(own_session, identities[0]) == 2
    await store.take_back_start(own_session, identities[0])
    await store.forget_starts(own_session, identities[0])
    await own_session.commit()

    half_id = uuid4()
    assert await fence.commit(own_session, half_id)
    assert not await fence.commit(own_session, half_id)
    await own_session.commit()
    assert await fence.resolve(own_session.bind, half_id) is Resolution.COMMIT
    assert await fence.prune(own_session.bind, timedelta(0)) == 1
    await own_session.close()
    await own_session.bind.dispose()
    assert await sprung(database_url) == {}


async def test_an_upgrade_and_a_check_call_nobody_elses_functions(database_url: str) -> None:
    """The tables are made and compared under PostgreSQL's own names, also on the user's connection, whose search path
    is the user's own again afterwards."""
    await set_traps(database_url)
    engine = create_async_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        before = await connection.scalar(text("SHOW search_path"))
        applied = await connection.run_sync(migrate.upgrade_connection, "own")
        assert applied
        assert await connection.scalar(text("SHOW search_path")) == before
        assert await migrate.check(connection, "own") == []
        await migrate.require_current(connection, "own")
        assert await connection.scalar(text("SHOW search_path")) == before
    assert await migrate.check(engine, "own") == []
    await engine.dispose()
    assert await migrate.upgrade(database_url, "other") == applied
    assert await sprung(database_url) == {}


async def test_the_processes_and_commands_call_nobody_elses_functions(
    processes: Processes, relmsg: Any, database_url: str, engine: AsyncEngine, broker: Broker, amqp_url: str
) -> None:
    """A relay with its coordinator at work, and every command that reads or changes the tables, spring no trap."""
    await broker.exchange("shop", "fanout")
    await broker.queue("billing", exchange="shop")
    await set_traps(database_url)
    outbox = Outbox("orders")
    sessions = async_sessionmaker(engine)
    relay = await processes.relmsg("relay", RELMSG_PROBES="", RELMSG_HALF_CHECK_AFTER="0.1")
    await relay.line("^relaying")

    async def publish(**given: object) -> None:
        async with sessions.begin() as session:
            await outbox.publish(session, Message(**{"type": "a", "exchange": "shop", "body": b"1"} | given))

    await publish()
    for number in range(3):
        await publish(ordering_key="hot", body=b"%d" % number)
    await publish(exchange="nowhere", ordering_key="held")
    await publish(ordering_key="held")
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, headers) "
                """VALUES ('shop', '', '', '{"x-forbidden": {"deep": [null]}, "CC": 1}')"""
            )
        )
    async with HalfProducer(amqp_url, group="orders") as half:

        @half.checker("done")
        async def done(_: HalfMessage) -> Resolution:
            return Resolution.COMMIT

        async with half.begin(Message(type="done", exchange="shop")):
            pass
        with pytest.raises(RuntimeError):
            async with half.begin(Message(type="done", exchange="shop"), check_after=0.1):
                raise RuntimeError

        async def arrived() -> None:
            assert await broker.count("billing") >= 6

        await eventually(arrived, within=30)
        with pytest.raises(RuntimeError):
            async with half.begin(Message(type="left", exchange="shop"), check_after=60) as left:
                raise RuntimeError

    async def kept() -> None:
        assert await waiting(engine) == 2

    await eventually(kept, within=30)
    parked = [str(row["id"]) for row in await Backlog(create_engine(database_url)).rows(parked=True)]
    waited = [str(row["id"]) for row in await Backlog(create_engine(database_url)).rows()]
    for command in (
        "db check",
        "db upgrade",
        "outbox status",
        "outbox list",
        "outbox list --parked --exchange shop --type a --json",
        f"outbox show {waited[0]}",
        *(f"outbox retry {row}" for row in parked),
        "outbox retry --all",
        "half list",
        "half list --state parked",
        f"half show {left.half_id}",
        "half resume --all",
        f"half rollback {left.half_id}",
    ):
        code, _, problems = await relmsg(*command.split())
        assert code in (0, 1), problems
        assert "Traceback" not in problems
        assert "fault of relmsg" not in problems, (command, problems)
    assert await relay.terminate() == 0
    await engine.dispose()
    assert await sprung(database_url) == {}
