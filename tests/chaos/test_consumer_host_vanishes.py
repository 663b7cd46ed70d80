"""A consumer's host vanishes, and its database session stays behind with locks on inbox rows."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg.database import create_engine
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled
from tests.support.pgbouncer import pgbouncer
from tests.support.proxy import Proxy

ORPHANS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"


async def test_the_orphaned_session_of_a_vanished_host_holds_up_its_own_message_alone(
    engine: AsyncEngine, broker: Broker, amqp_url: str, database_url: str
) -> None:
    """The other consumer handles all else and the held message once the server ends the orphan."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    sessions = async_sessionmaker(engine)
    async with Proxy.before(database_url) as database, Proxy.before(amqp_url) as network:
        far_engine = create_async_engine(database.through(database_url))
        far, near = Inbox("billing", async_sessionmaker(far_engine)), Inbox("billing", sessions)
        held, over = asyncio.Event(), asyncio.Event()

        @far.handler("order.placed", queue=QUEUE, timeout=4.0)
        async def holds(session: AsyncSession, message: Message) -> None:
            await effect(session, message)
            held.set()
            await over.wait()

        near.handler("order.placed", queue=QUEUE, timeout=4.0)(effect)
        await place(broker, "held")
        async with running(far, network.through(amqp_url)):
            await held.wait()
            database.blackhole()
            await network.refuse()
            network.reset()
            async with running(near, amqp_url):
                others = [str(each) for each in range(50)]
                await place(broker, *others)
                await settled(near, handled=50, failed=0)
                assert sorted(await effects(sessions), key=int) == sorted(others, key=int)
                async with engine.connect() as connection:
                    assert await connection.scalar(text(ORPHANS)) == 1
                assert near.ready() is None
                assert near.live() is None
                await settled(near, handled=51, failed=0)
                assert (await effects(sessions))[-1] == "held"
            over.set()
            database.heal()
            database.reset()
        await far_engine.dispose()


async def test_relmsgs_own_sessions_are_ended_when_their_host_has_vanished(database_url: str) -> None:
    """A session of relmsg asks the server for keepalives and for an end of idle transactions, directly."""
    engine = create_engine(database_url)
    async with engine.connect() as connection:
        shown = {
            name: await connection.scalar(text(f"SHOW {name}"))
            for name in ("idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_user_timeout")
        }
    await engine.dispose()
    assert shown == {
        "idle_in_transaction_session_timeout": "1min",
        "tcp_keepalives_idle": "30",
        "tcp_user_timeout": "60000",
    }


async def test_a_pooler_that_takes_no_such_settings_is_no_hindrance(database_url: str) -> None:
    """Through PgBouncer relmsg works without them, and leaves none on a session that others get."""
    async with pgbouncer(database_url) as url:
        engine = create_engine(url)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SHOW idle_in_transaction_session_timeout")) == "0"
        await engine.dispose()


async def test_an_idle_transaction_of_relmsgs_own_is_ended_by_the_server(database_url: str) -> None:
    """What relmsg asks for at the start of a session is in force: the server ends it, and its locks are free."""
    engine = create_engine(
        database_url, connect_args={"server_settings": {"idle_in_transaction_session_timeout": "100"}}
    )
    observer = create_async_engine(database_url)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))

        async def ended() -> None:
            async with observer.connect() as looking:
                assert await looking.scalar(text(ORPHANS)) == 0

        await eventually(ended)
        await connection.invalidate()
    await observer.dispose()
    await engine.dispose()
