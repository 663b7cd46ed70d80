"""Publishing in the caller's transaction, on a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.errors import HeaderRefused, InvalidMessage, PropertyRefused, TransactionRequired, UsageError
from relmsg.migrate import upgrade
from relmsg.schema import tables

OUTBOX = Outbox("orders")
ROW = tables().outbox_message


def placed(number: int = 7, **given: Any) -> Message:
    return Message(**{"type": "order.placed", "body": {"id": number}, "exchange": "shop", "routing_key": "o", **given})


async def rows(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(select(ROW).order_by(ROW.c.id)))


async def test_a_committed_message_is_a_row_with_everything_it_said(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Every property of the message stands in its row after the commit."""
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = placed(
        ordering_key="7",
        headers={"n": 1, "deep": {"list": [True, None, "x"]}},
        correlation_id="c",
        reply_to="r",
        content_encoding="identity",
        expiration=timedelta(seconds=90),
        timestamp=when,
    )
    async with sessions() as session, session.begin():
        assert await OUTBOX.publish(session, message) is message

    (row,) = await rows(engine)
    assert (row.message_id, row.type, row.source) == (message.id, "order.placed", "orders")
    assert (row.exchange, row.routing_key, row.ordering_key) == ("shop", "o", "7")
    assert row.headers == {"n": 1, "deep": {"list": [True, None, "x"]}}
    assert (row.content_type, row.content_encoding, row.body) == ("application/json", "identity", b'{"id":7}')
    assert (row.correlation_id, row.reply_to, row.occurred_at) == ("c", "r", when)
    assert timedelta(seconds=89) < row.expires_at - row.created_at <= timedelta(seconds=91)
    assert 0 <= row.slot < 64


async def test_a_rollback_takes_the_message_along(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A message whose transaction is rolled back never was."""
    async with sessions() as session:
        await session.execute(text("SELECT 1"))
        await OUTBOX.publish(session, placed())
        await session.rollback()
    assert await rows(engine) == []


async def test_publish_never_commits(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
    """Nobody else sees the message before the caller commits."""
    async with sessions() as session, session.begin():
        await OUTBOX.publish(session, placed())
        assert await rows(engine) == []
    assert len(await rows(engine)) == 1


async def test_a_savepoint_takes_its_own_messages_and_only_those(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """D22: rolling back a savepoint drops what was published inside it and nothing else."""
    before, inside, after = placed(1), placed(2), placed(3)
    async with sessions() as session, session.begin():
        await OUTBOX.publish(session, before)
        savepoint = await session.begin_nested()
        await OUTBOX.publish(session, inside)
        await savepoint.rollback()
        await OUTBOX.publish(session, after)
    assert [row.message_id for row in await rows(engine)] == [before.id, after.id]


async def test_an_invalid_message_fails_in_the_transaction_and_spares_it(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A message that can never be sent raises at once; the caller may go on with the same transaction."""
    async with sessions() as session, session.begin():
        with pytest.raises(HeaderRefused, match="float"):
            await OUTBOX.publish(session, placed(headers={"price": 1.5}))
        await OUTBOX.publish(session, placed())
    assert len(await rows(engine)) == 1


async def test_one_invalid_message_of_many_writes_none(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """publish_many checks all before it writes any."""
    async with sessions() as session, session.begin():
        with pytest.raises(InvalidMessage):
            await OUTBOX.publish_many(session, [placed(1), placed(2, routing_key="x" * 256)])
    assert await rows(engine) == []


async def test_many_messages_keep_their_order(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
    """publish_many gives row ids in the order of the messages, also with mixed properties."""
    messages = [placed(n, ordering_key=str(n % 3) if n % 2 else None, headers={"n": n}) for n in range(1500)]
    async with engine.begin() as connection:
        await OUTBOX.publish_many(connection, messages)
    assert [row.message_id for row in await rows(engine)] == [message.id for message in messages]


async def test_a_session_without_a_transaction_is_refused(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Where no transaction is open, publish says so instead of opening one of its own."""
    async with sessions() as session:
        with pytest.raises(TransactionRequired, match="no transaction"):
            await OUTBOX.publish(session, placed())


async def test_a_connection_without_a_transaction_is_refused(engine: AsyncEngine) -> None:
    """The same holds for a connection."""
    async with engine.connect() as connection:
        with pytest.raises(TransactionRequired, match="no transaction"):
            await OUTBOX.publish(connection, placed())


async def test_autocommit_is_refused(engine: AsyncEngine) -> None:
    """D22: on an AUTOCOMMIT connection the message would outlive the rolled-back work."""
    automatic = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with automatic.connect() as connection:
        await connection.execute(text("SELECT 1"))
        with pytest.raises(TransactionRequired, match="AUTOCOMMIT"):
            await OUTBOX.publish(connection, placed())
    async with AsyncSession(automatic) as session, session.begin():
        with pytest.raises(TransactionRequired, match="AUTOCOMMIT"):
            await OUTBOX.publish(session, placed())
    assert await rows(engine) == []


async def test_anything_else_than_a_session_or_connection_is_refused(engine: AsyncEngine) -> None:
    """An engine is no transaction."""
    with pytest.raises(UsageError, match="AsyncSession or an AsyncConnection"):
        await OUTBOX.publish(engine, placed())  # type: ignore[arg-type]


async def test_insert_is_the_same_for_sync_code(engine: AsyncEngine) -> None:
    """outbox.insert(message) makes the row that publish makes, through a sync connection."""
    message = placed(expiration=60, ordering_key="k")

    def write(connection: Connection) -> None:
        connection.execute(OUTBOX.insert(message))
        connection.execute(OUTBOX.insert(placed(8)))

    async with engine.begin() as connection:
        await connection.run_sync(write)
    first, second = await rows(engine)
    assert (first.message_id, first.body, first.ordering_key) == (message.id, b'{"id":7}', "k")
    assert first.expires_at is not None
    assert second.expires_at is None


def test_insert_compiles_without_a_database() -> None:
    """The statement is plain Core: a sync engine of any PostgreSQL driver can run it."""
    compiled = OUTBOX.insert(placed()).compile(create_engine("postgresql+asyncpg://"))
    assert "INSERT INTO relmsg.outbox_message" in str(compiled)


async def test_plain_sql_is_a_valid_publish(engine: AsyncEngine) -> None:
    """An INSERT with exchange, routing key and body gets id, slot, message id and times by default."""
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO relmsg.outbox_message (exchange, routing_key, body) VALUES ('shop', 'o', 'x')")
        )
    (row,) = await rows(engine)
    assert row.message_id.version == 4
    assert row.headers == {}
    assert row.created_at is not None


async def test_a_retried_request_publishes_the_same_id(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """D19: with an id made from the business key, two tries of one request are one message to the consumer."""
    for _ in range(2):
        async with sessions() as session, session.begin():
            await OUTBOX.publish(session, placed(id=Message.id_for("order-7-placed")))
    first, second = await rows(engine)
    assert first.message_id == second.message_id
    assert first.message_id.version == 5


async def test_an_id_that_is_no_uuid_is_refused(sessions: async_sessionmaker[AsyncSession]) -> None:
    """The outbox stores UUIDs; the error shows how to make one from a business key."""
    async with sessions() as session, session.begin():
        with pytest.raises(PropertyRefused, match="id_for"):
            await OUTBOX.publish(session, placed(id="order-7"))


async def test_another_schema_is_written_where_it_says(
    engine: AsyncEngine, database_url: str, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """An outbox with a schema of its own writes there, and a name with quotes is only a name."""
    await upgrade(database_url, 'we"ird')
    async with sessions() as session, session.begin():
        await Outbox("orders", schema='we"ird').publish(session, placed())
    async with engine.connect() as connection:
        assert await connection.scalar(text('SELECT count(*) FROM "we""ird".outbox_message')) == 1
    assert await rows(engine) == []


async def test_arguments_in_the_wrong_order_are_told(sessions: async_sessionmaker[AsyncSession]) -> None:
    """publish(message, session) is a slip that deserves a sentence."""
    async with sessions() as session, session.begin():
        with pytest.raises(UsageError, match=r"publish\(tx, message\)"):
            await OUTBOX.publish(placed(), session)  # type: ignore[arg-type]
