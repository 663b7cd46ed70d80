"""NOTIFY after the commit, on a connection of its own, few enough and never at the caller's cost."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from relmsg import Hint, Message, Outbox
from relmsg.clock import SystemClock
from relmsg.errors import UsageError
from relmsg.outbox.listen import Listener
from relmsg.outbox.notify import channel
from relmsg.testing import eventually
from tests.support.proxy import Proxy

MESSAGE = Message(type="order.placed", body={"id": 7}, exchange="", routing_key="orders")


class Heard:
    """What PostgreSQL tells on the channel of a schema."""

    def __init__(self) -> None:
        self.count = 0
        self.any = asyncio.Event()

    def __call__(self, *_: object) -> None:
        self.count += 1
        self.any.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.any.wait(), 20)
        self.any.clear()


@asynccontextmanager
async def ears(url: str, schema: str = "relmsg") -> AsyncIterator[Heard]:
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    heard = Heard()
    await connection.add_listener(channel(schema), heard)
    try:
        yield heard
        await connection.execute("SELECT 1")  # whatever was told until now has arrived with this answer
    finally:
        await connection.close()


async def backends(engine: AsyncEngine, query: str) -> list[int]:
    """The server processes whose last statement was like this one."""
    async with engine.connect() as connection:
        found = await connection.scalars(
            text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE :query "
                "AND pid <> pg_backend_pid()"
            ),
            {"query": query},
        )
        return list(found)


async def cut(engine: AsyncEngine, query: str) -> None:
    """End those processes."""
    for pid in await backends(engine, query):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


class Impatient(SystemClock):
    """Backs off for no time."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.01)


async def test_a_commit_hints_and_a_rollback_does_not(
    database_url: str, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Nothing is told before the commit or of a rollback, neither of all nor to a savepoint."""
    async with ears(database_url) as heard, Hint(engine) as hint:
        outbox = Outbox("orders", wake=hint)
        async with sessions() as session:
            await session.begin()
            await outbox.publish(session, MESSAGE)
            await session.rollback()
            await session.begin()
            savepoint = await session.begin_nested()
            await outbox.publish(session, MESSAGE)
            await savepoint.rollback()
            await session.commit()
            await session.begin()
            await outbox.publish(session, MESSAGE)
            await session.execute(text("SELECT pg_sleep(0.05)"))
            assert heard.count == 0
            await session.commit()
        await heard.next()
    assert heard.count == 1


async def test_the_hint_has_a_connection_of_its_own(database_url: str, engine: AsyncEngine) -> None:
    """A pool of one, taken by the caller, is no obstacle; and the caller's transaction holds no NOTIFY."""
    single = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1)
    async with ears(database_url) as heard, Hint(single) as hint, single.connect() as taken:
        async with taken.begin():
            await Outbox("orders", wake=hint).publish(taken, MESSAGE)
        await heard.next()
        async with taken.begin():
            hint()
            await heard.next()  # while the transaction is open
            await taken.rollback()
    await single.dispose()


async def test_a_hint_is_made_as_the_engine_makes_connections(database_url: str) -> None:
    """Connect arguments, a creator, and listeners for do_connect are those of the engine, whatever its pool."""
    url = make_url(database_url)
    wrong = url.set(password="wrong", port=1)

    async def creator(*_: Any, **__: Any) -> asyncpg.Connection:
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        return await asyncpg.connect(plain, server_settings={"application_name": "made by the creator"})

    engine = create_async_engine(wrong, async_creator=creator, poolclass=NullPool)
    named = create_async_engine(wrong, connect_args={"server_settings": {"application_name": "named"}})

    @event.listens_for(named.sync_engine, "do_connect")
    def _connect(dialect: Any, record: Any, args: list[Any], parameters: dict[str, Any]) -> None:
        parameters |= {"host": url.host, "port": url.port, "user": url.username, "password": url.password}

    for each in (engine, named):
        async with ears(database_url) as heard, Hint(each) as hint:
            hint()
            await heard.next()
        await each.dispose()


async def test_many_commits_are_few_hints(
    database_url: str, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """40 transactions that commit side by side hint less often than they commit."""
    async with ears(database_url) as heard, Hint(engine) as hint:
        await asyncio.gather(*(_commit(sessions, Outbox("orders", wake=hint)) for _ in range(40)))
        await heard.next()
    assert 1 <= heard.count < 40


async def _commit(sessions: async_sessionmaker[AsyncSession], outbox: Outbox) -> None:
    async with sessions() as session, session.begin():
        await outbox.publish(session, MESSAGE)


async def test_calls_of_one_moment_are_two_hints_at_most(database_url: str, engine: AsyncEngine) -> None:
    """While a hint is under way and in the gap after it, however many calls become one more."""
    released = asyncio.Event()

    class Gap(SystemClock):
        async def sleep(self, seconds: float) -> None:
            await released.wait()

    async with ears(database_url) as heard, Hint(engine, clock=Gap()) as hint:
        hint()
        await heard.next()
        for _ in range(200):
            hint()
        released.set()
        await heard.next()
    assert heard.count == 2


async def test_a_hint_whose_connection_was_cut_comes_back(
    database_url: str, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """The commit stands while the connection is gone, and the same hint is told on the next one."""
    async with ears(database_url) as heard, Hint(engine, clock=Impatient()) as hint:
        hint()
        await heard.next()
        await cut(engine, "NOTIFY%")
        await _commit(sessions, Outbox("orders", wake=hint))
        await heard.next()
        assert len(await backends(engine, "NOTIFY%")) == 1


async def test_a_database_that_is_away_costs_a_log_line_and_nothing_else(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Hints that cannot be sent are tried again with growing pauses, told once, and end with the block."""
    pauses: list[float] = []
    enough = asyncio.Event()

    class Patient(SystemClock):
        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 12:
                enough.set()
            await asyncio.sleep(0)

    async with Proxy.before(database_url) as proxy:
        engine = create_async_engine(proxy.through(database_url))
        await proxy.refuse()
        async with Hint(engine, clock=Patient(), chance=lambda: 1.0) as hint:
            hint()
            await asyncio.wait_for(enough.wait(), 20)
        await engine.dispose()
    assert pauses[:12] == [min(30.0, 0.1 * 2**n) for n in range(12)]
    assert len([each for each in caplog.records if "hints cannot be sent" in each.getMessage()]) == 1


async def test_a_hint_from_another_thread_is_heard(database_url: str, engine: AsyncEngine) -> None:
    """Sync code in a worker thread may hint for itself."""
    async with ears(database_url) as heard, Hint(engine) as hint:
        await asyncio.to_thread(hint)
        await heard.next()


async def test_a_hint_outside_of_its_block_does_nothing(engine: AsyncEngine) -> None:
    """Before, after and twice: an outbox made at import time may hold a hint that is not entered yet."""
    hint = Hint(engine)
    hint()
    async with hint:
        with pytest.raises(UsageError, match="entered"):
            await hint.__aenter__()
    hint()
    with pytest.raises(UsageError, match="AsyncEngine"):
        Hint("postgresql+asyncpg://")  # type: ignore[arg-type]


async def test_schemas_do_not_hear_each_other(database_url: str, engine: AsyncEngine) -> None:
    """Each schema has a channel of its own, also with names that need quotes or are as long as a name may be."""
    names = ["relmsg", 'we"ird', "Relmsg", "x" * 63, "x" * 62 + "y"]
    for name in names:
        others = [each for each in names if each != name]
        async with ears(database_url, name) as mine, Hint(engine, schema=name) as hint:
            async with ears(database_url, others[0]) as first, ears(database_url, others[-1]) as last:
                hint()
                await mine.next()
            assert (mine.count, first.count, last.count) == (1, 0, 0)


@given(st.lists(st.text(min_size=1, max_size=63), min_size=2, max_size=2, unique=True))
def test_channels_fit_and_differ(schemas: list[str]) -> None:
    """PostgreSQL would cut a longer name, and two schemas could meet in what is left."""
    first, second = map(channel, schemas)
    assert len(first.encode()) <= 63
    assert first != second


class Ear:
    """A relay's listener, run for a test."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.woken = asyncio.Event()
        self.hints = Counter("hints", "Hints", registry=CollectorRegistry())
        self.listener = Listener(
            engine, self.woken.set, schema="relmsg", hints=self.hints, clock=Impatient(), chance=lambda: 1.0
        )

    async def hears(self) -> None:
        await asyncio.wait_for(self.woken.wait(), 20)
        self.woken.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.listener.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_listener_wakes_when_it_begins_and_for_each_hint(engine: AsyncEngine) -> None:
    """What was hinted before anybody listened is made up for by one look."""
    ear = Ear(engine)
    async with ear.running(), Hint(engine) as hint:
        await ear.hears()
        hint()
        await ear.hears()
        assert ear.hints._value.get() == 1


async def test_a_listener_whose_connection_was_cut_listens_again(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A terminated backend is replaced, and hears again."""
    ear = Ear(engine)
    async with ear.running(), Hint(engine) as hint:
        for _ in range(2):
            await ear.hears()
            await cut(engine, "LISTEN%")
        await ear.hears()
        await eventually(partial(_listening, ear), within=10)
        hint()
        await ear.hears()
        assert ear.hints._value.get() == 1
    assert await backends(engine, "LISTEN%") == []


async def _listening(ear: Ear) -> None:
    assert ear.listener.listening.is_set()


async def test_a_listener_outlives_a_database_that_is_away(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It says so once an outage, and hears again when the database is back."""
    async with Proxy.before(database_url) as proxy:
        engine = create_async_engine(proxy.through(database_url))
        ear = Ear(engine)
        async with ear.running():
            await ear.hears()
            await proxy.refuse()
            before = proxy.accepted
            proxy.reset()
            await eventually(partial(_deaf, ear), within=10)
            for _ in range(20):
                await asyncio.sleep(0.01)
            await proxy.accept()
            await ear.hears()
            assert proxy.accepted == before + 1
        await engine.dispose()
    assert len([each for each in caplog.records if "no hints are heard" in each.getMessage()]) == 1


async def _deaf(ear: Ear) -> None:
    assert not ear.listener.listening.is_set()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_hint_closed_right_after_a_commit_leaves_nothing_behind(database_url: str, frozen: bool) -> None:
    """What was committed just before is hinted; and no future fails unseen, also where the database has just frozen."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with Proxy.before(database_url) as proxy, ears(database_url) as heard:
        engine = create_async_engine(proxy.through(database_url))
        async with Hint(engine) as hint:
            if frozen:
                hint()
                await heard.next()
                proxy.blackhole()
            hint()
            await asyncio.sleep(0)
        if not frozen:
            await heard.next()
        proxy.heal()
        await engine.dispose()
    del hint, engine
    gc.collect()
    await asyncio.sleep(0)
    assert told == []
