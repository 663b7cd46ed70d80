"""A handler that reaches a second database by itself: what happens there is its own affair."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Inbox, Message
from relmsg.errors import DatabaseAway
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, QUICK, counted, create_effect, effect, effects, place, running, settled

Sessions = async_sessionmaker[AsyncSession]
Meet = Callable[[AsyncEngine, AsyncSession], Awaitable[None]]
NOBODY = "postgresql://user:password@127.0.0.1:1/nowhere"


async def refused_connection(_: AsyncEngine, __: AsyncSession) -> None:
    async with create_async_engine(NOBODY.replace("postgresql", "postgresql+asyncpg")).connect():
        pass


async def refused_driver_connection(_: AsyncEngine, __: AsyncSession) -> None:
    await asyncpg.connect(NOBODY)


async def ended_session(engine: AsyncEngine, _: AsyncSession) -> None:
    other = create_async_engine(engine.url)
    try:
        async with other.connect() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    finally:
        await other.dispose()


async def read_only_server(engine: AsyncEngine, session: AsyncSession) -> None:
    await session.connection()  # also where the handler has had its own connection in its hands
    other = create_async_engine(engine.url)
    try:
        async with other.begin() as connection:
            await connection.execute(text("SET TRANSACTION READ ONLY"))
            await connection.execute(text("CREATE TABLE nothing ()"))
    finally:
        await other.dispose()


async def wrapped_in_an_error_of_its_own(_: AsyncEngine, __: AsyncSession) -> None:
    try:
        await asyncpg.connect(NOBODY)
    except OSError as error:
        raise ValueError("no stock") from error


async def said_by_itself(_: AsyncEngine, __: AsyncSession) -> None:
    raise DatabaseAway("the warehouse does not answer")


@pytest.mark.parametrize(
    "meet",
    [
        refused_connection,
        refused_driver_connection,
        ended_session,
        read_only_server,
        wrapped_in_an_error_of_its_own,
        said_by_itself,
    ],
)
@pytest.mark.parametrize("group", [1, 50])
async def test_a_second_database_that_is_away_fails_its_message_only(
    meet: Meet, group: int, engine: AsyncEngine, sessions: Sessions, broker: Broker, amqp_url: str
) -> None:
    """Its attempts are spent, it goes to the error queue, nothing pauses, and the others are handled."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    inbox, calls = Inbox("billing", sessions), list[str]()

    @inbox.handler("order.placed", queue=QUEUE, retry=QUICK, group=group)
    async def handle(message: Message, session: AsyncSession) -> None:
        calls.append(str(message.id))
        if message.id == "bad":
            await meet(engine, session)
        await effect(session, message)

    async with running(inbox, amqp_url):
        await place(broker, "bad", "1", "2", "3")
        await settled(inbox, failed=1, handled=3)
        assert inbox.ready() is None
    assert sorted(await effects(sessions)) == ["1", "2", "3"]
    assert QUICK.attempts <= calls.count("bad") <= QUICK.attempts + 1  # once more in its group
    assert inbox.metrics.registry.get_sample_value("relmsg_consumer_paused_seconds_total") in (None, 0)


async def on_the_session(session: AsyncSession, message: Message) -> None:
    await session.execute(text("INSERT INTO effect (id) VALUES (:id)"), {"id": str(message.id)})


async def on_the_drivers_connection(session: AsyncSession, message: Message) -> None:
    raw = await (await session.connection()).get_raw_connection()
    assert raw.driver_connection is not None
    await raw.driver_connection.execute("INSERT INTO effect (id) VALUES ($1)", str(message.id))


@pytest.mark.parametrize("insert", [on_the_session, on_the_drivers_connection])
async def test_the_messages_own_database_is_still_waited_for(
    insert: Callable[[AsyncSession, Message], Awaitable[None]],
    engine: AsyncEngine,
    sessions: Sessions,
    broker: Broker,
    amqp_url: str,
) -> None:
    """A full disk that the handler meets in its own transaction spends no attempt, whichever way the statement went."""
    await create_effect(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE SEQUENCE tried"))
        await connection.execute(
            text(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF nextval('tried') <= 5 THEN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END IF;"
                " RETURN new; END $$"
            )
        )
        await connection.execute(
            text("CREATE TRIGGER fail BEFORE INSERT ON effect FOR EACH ROW EXECUTE FUNCTION fail()")
        )
    await broker.queue(QUEUE)
    inbox, met = Inbox("billing", sessions), list[BaseException]()

    @inbox.handler("order.placed", queue=QUEUE, retry=1, group=1)
    async def handle(message: Message, session: AsyncSession) -> None:
        try:
            await insert(session, message)
        except (DBAPIError, asyncpg.PostgresError) as error:
            met.append(error)
            raise

    async with running(inbox, amqp_url):
        await place(broker, "1")
        await settled(inbox, handled=1)
    assert len(met) == 5
    assert counted(inbox, "failed") == 0
