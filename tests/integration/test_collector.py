"""Messages that wait in the transaction and are written in one statement just before its commit."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Message, Outbox
from relmsg.errors import HeaderRefused, TransactionRequired, UsageError
from relmsg.migrate import upgrade
from relmsg.schema import tables

COLLECTING = Outbox("orders", collect=True)
AT_ONCE = Outbox("orders")
ROW = tables().outbox_message


def placed(number: int = 7, **given: Any) -> Message:
    return Message(**{"type": "order.placed", "body": {"id": number}, "exchange": "shop", "routing_key": "o", **given})


async def numbers(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return [bytes(body).decode() for body in await connection.scalars(select(ROW.c.body).order_by(ROW.c.id))]


def bodies(*wanted: int) -> list[str]:
    return [f'{{"id":{number}}}' for number in wanted]


@pytest.fixture
def inserts(engine: AsyncEngine) -> list[str]:
    """Every INSERT into the outbox that PostgreSQL got, by its own count of the statements."""
    seen: list[str] = []

    def logged(record: Any) -> None:
        if "outbox_message" in record.query:
            seen.append(record.query)

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, record: object) -> None:
        connection.driver_connection.add_query_logger(logged)

    return seen


async def test_what_a_transaction_published_is_written_in_one_statement_at_its_commit(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], inserts: list[str]
) -> None:
    """Nothing is written before the commit; then everything, at once and in its order."""
    async with sessions() as session, session.begin():
        await session.execute(text("SELECT 1"))
        await COLLECTING.publish(session, placed(1))
        await COLLECTING.publish_many(session, [placed(2), placed(3)])
        await COLLECTING.publish(session, placed(4))
        assert inserts == []
    assert len([each for each in inserts if each.startswith("INSERT")]) == 1
    assert await numbers(engine) == bodies(1, 2, 3, 4)


async def test_a_transaction_that_only_publishes_commits_its_messages(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Also where no other statement has begun the transaction in PostgreSQL."""
    async with sessions() as session, session.begin():
        await COLLECTING.publish(session, placed(1))
    assert await numbers(engine) == bodies(1)


async def test_the_row_is_the_same_as_without_collecting(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Collected or not, one or many or by insert(): the columns are equal."""
    whole: dict[str, Any] = {
        "ordering_key": "7",
        "headers": {"n": 1, "ä": [True, None, {"x": "\U0001f600"}]},
        "correlation_id": "c",
        "reply_to": "r",
        "content_encoding": "identity",
        "expiration": 90,
    }
    variants = [placed(**whole), placed(), placed(headers={"a": 2**62})]
    async with sessions() as session, session.begin():
        for each in variants:
            await AT_ONCE.publish(session, each)
    async with sessions() as session, session.begin():
        await AT_ONCE.publish_many(session, variants)
    async with sessions() as session, session.begin():
        for each in variants:
            await COLLECTING.publish(session, each)
    async with sessions() as session, session.begin():
        for each in variants:
            await session.execute(COLLECTING.insert(each))
    async with engine.connect() as connection:
        found = [row._asdict() for row in await connection.execute(select(ROW).order_by(ROW.c.id))]
    for row in found:
        row["expires_at"] = row["expires_at"] and round((row["expires_at"] - row["created_at"]).total_seconds())
        del row["id"], row["created_at"]
    assert found == found[:3] * 4


async def test_publish_still_refuses_at_once(sessions: async_sessionmaker[AsyncSession]) -> None:
    """What cannot be sent fails at publish, not at the commit; and so does a session without a transaction."""
    async with sessions() as session:
        with pytest.raises(TransactionRequired):
            await COLLECTING.publish(session, placed())
        async with session.begin():
            with pytest.raises(HeaderRefused):
                await COLLECTING.publish(session, placed(headers={"price": 1.5}))


async def test_a_rollback_drops_everything_and_the_session_goes_on(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """The next transaction of the same session begins with nothing collected."""
    async with sessions() as session:
        async with session.begin():
            await COLLECTING.publish(session, placed(1))
            await session.rollback()
        async with session.begin():
            await COLLECTING.publish(session, placed(2))
    assert await numbers(engine) == bodies(2)


async def test_a_session_that_is_closed_drops_everything(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Closing without a commit is a rollback, for collected messages as for every other write."""
    session = sessions()
    await session.execute(text("SELECT 1"))
    await COLLECTING.publish(session, placed(1))
    await session.close()
    async with session.begin():
        await COLLECTING.publish(session, placed(2))
    assert await numbers(engine) == bodies(2)


async def test_a_commit_underneath_the_session_writes_as_well(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Whoever commits the connection commits the messages."""
    async with sessions() as session:
        await session.execute(text("SELECT 1"))
        await COLLECTING.publish(session, placed(1))
        await (await session.connection()).commit()
    assert await numbers(engine) == bodies(1)


async def test_a_session_joined_to_a_transaction_writes_at_the_real_commit(engine: AsyncEngine) -> None:
    """Where a session's commit is only a savepoint's, the messages go with the transaction around it."""
    for keep in (False, True):
        async with engine.connect() as connection:
            outer = await connection.begin()
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session, session.begin():
                await COLLECTING.publish(session, placed(1))
            assert await numbers(engine) == []
            await (outer.commit() if keep else outer.rollback())
    assert await numbers(engine) == bodies(1)


async def test_a_commit_sent_as_text_is_refused_while_something_is_collected(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A COMMIT that SQLAlchemy knows nothing of would leave the messages behind; it raises, and is not sent."""
    async with sessions() as session:
        await session.begin()
        await COLLECTING.publish(session, placed(2))
        for statement in (
            "COMMIT",
            "  end;",
            "SAVEPOINT mine",
            "ROLLBACK TO SAVEPOINT mine",
            "prepare transaction 'x'",
        ):
            with pytest.raises(UsageError, match="sent as a statement"):
                await session.execute(text(statement))
        await session.commit()
    assert await numbers(engine) == bodies(2)


async def test_a_commit_on_the_drivers_own_connection_is_told(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody can refuse is at least logged as an error, with the number of messages."""
    async with sessions() as session:
        await session.execute(text("SELECT 1"))
        await COLLECTING.publish(session, placed(1))
        driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        await driver.execute("COMMIT")
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "1 collected messages were not written" in record.getMessage()


async def test_an_ordinary_rollback_is_not_told(
    sessions: async_sessionmaker[AsyncSession], caplog: pytest.LogCaptureFixture
) -> None:
    """Dropping what is rolled back is nothing to talk about."""
    async with sessions() as session:
        await session.execute(text("SELECT 1"))
        await COLLECTING.publish(session, placed(1))
        await session.rollback()
        await session.begin()
        await COLLECTING.publish(session, placed(1))
    assert caplog.records == []


async def test_a_failed_write_fails_the_commit_with_sqlalchemys_error(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """If the rows cannot be written, nothing of the transaction is."""
    outbox = Outbox("orders", schema="nowhere", collect=True)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE work (id int)"))
    async with sessions() as session:
        await session.execute(text("INSERT INTO work VALUES (1)"))
        await outbox.publish(session, placed(1))
        with pytest.raises(DBAPIError, match="nowhere") as refused:
            await session.commit()
        await session.rollback()
        assert refused.value.orig.sqlstate == "42P01"
        assert await session.scalar(text("SELECT count(*) FROM work")) == 0


async def test_a_swallowed_error_cannot_commit_silently(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """PostgreSQL rolls a failed transaction back at its COMMIT, without an error: a collected row makes it one."""
    async with sessions() as session:
        await session.begin()
        await COLLECTING.publish(session, placed(1))
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / 0"))
        with pytest.raises(DBAPIError):
            await session.commit()
    assert await numbers(engine) == []


async def test_a_failed_write_leaves_nothing_in_the_pool(database_url: str) -> None:
    """The connection of a commit that failed can be used by the next one: its transaction has been rolled back."""
    single = create_async_engine(database_url, pool_size=1, max_overflow=0)
    nowhere = Outbox("orders", schema="nowhere", collect=True)
    for _ in range(3):
        async with AsyncSession(single) as session:
            await session.execute(text("SELECT 1"))
            await nowhere.publish(session, placed(1))
            with pytest.raises(DBAPIError, match="nowhere"):
                await session.commit()
        with pytest.raises(DBAPIError, match="nowhere"):
            await _publish_in_a_block(single, nowhere)
        async with single.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            assert not driver.is_in_transaction()
    await single.dispose()


async def _publish_in_a_block(engine: AsyncEngine, outbox: Outbox) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
        await outbox.publish(connection, placed(1))


async def test_two_sessions_at_once_do_not_mix(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
    """Each transaction writes what was published in it."""
    async with sessions() as first, sessions() as second:
        await first.begin()
        await second.begin()
        await COLLECTING.publish(first, placed(1))
        await COLLECTING.publish(second, placed(2))
        await first.rollback()
        await second.commit()
    assert await numbers(engine) == bodies(2)


async def test_a_connection_without_a_session_collects_too(engine: AsyncEngine) -> None:
    """The commit of an AsyncConnection writes, transaction after transaction."""
    async with engine.connect() as connection:
        for number in (1, 2):
            async with connection.begin():
                await COLLECTING.publish(connection, placed(number))
        async with connection.begin() as transaction:
            await COLLECTING.publish(connection, placed(3))
            await transaction.rollback()
    assert await numbers(engine) == bodies(1, 2)


async def test_engines_made_of_one_another_write_once(engine: AsyncEngine) -> None:
    """An engine with execution options tells of its commits together with the one it was made from."""
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    for each in (engine, strict, engine):
        async with each.begin() as connection:
            await COLLECTING.publish(connection, placed(1))
            async with connection.begin_nested():
                await COLLECTING.publish(connection, placed(2))
    assert await numbers(engine) == bodies(1, 2, 1, 2, 1, 2)


async def test_outboxes_of_two_schemas_share_a_transaction(
    engine: AsyncEngine, database_url: str, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Each schema gets its own rows, in their order."""
    await upgrade(database_url, "other")
    other = Outbox("orders", schema="other", collect=True)
    async with sessions() as session, session.begin():
        for number in (1, 2):
            await COLLECTING.publish(session, placed(number))
            await other.publish(session, placed(number + 10))
    assert await numbers(engine) == bodies(1, 2)
    theirs = tables("other").outbox_message
    async with engine.connect() as connection:
        found = await connection.scalars(select(theirs.c.body).order_by(theirs.c.id))
        assert [bytes(body).decode() for body in found] == bodies(11, 12)


async def test_a_two_phase_transaction_is_refused(engine: AsyncEngine) -> None:
    """Its commit has another name and another time."""
    async with AsyncSession(engine, twophase=True) as session:
        await session.begin()
        with pytest.raises(UsageError, match="two-phase"):
            await COLLECTING.publish(session, placed(1))


@pytest.mark.parametrize("outbox", [COLLECTING, AT_ONCE], ids=["collecting", "at once"])
async def test_a_session_that_lost_its_connection_refuses_a_publish(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], outbox: Outbox
) -> None:
    """On a connection that was lost publish raises, as any statement of the session would, and nothing is kept."""
    async with sessions() as session:
        await session.begin()
        await outbox.publish(session, placed(1))
        await (await session.connection()).invalidate()
        with pytest.raises(SQLAlchemyError):
            await outbox.publish(session, placed(2))
        await session.rollback()
    assert await numbers(engine) == []


async def test_a_savepoint_older_than_the_first_publish_takes_it_along(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """Rolled back, a savepoint drops what was published inside it, also when it began before anything was collected."""
    async with sessions() as session, session.begin():
        outer = await session.begin_nested()
        await session.execute(text("SELECT 1"))
        await COLLECTING.publish(session, placed(1))
        inner = await session.begin_nested()
        await COLLECTING.publish(session, placed(2))
        await inner.commit()
        await outer.rollback()
        await COLLECTING.publish(session, placed(3))
    assert await numbers(engine) == bodies(3)


STEPS = st.lists(
    st.sampled_from(["publish", "publish", "many", "statement", "begin", "release", "rollback", "outermost"]),
    max_size=25,
)


class Walk:
    """A transaction taken through random steps, beside a model of which messages it should keep."""

    def __init__(self, tx: AsyncSession | AsyncConnection, outbox: Outbox) -> None:
        self._tx = tx
        self._outbox = outbox
        self._open: list[tuple[Any, int]] = []
        self._number = 0
        self.kept: list[int] = []

    async def take(self, step: str) -> None:
        if step in ("publish", "many"):
            new = [self._number + n for n in range(1 if step == "publish" else 3)]
            self._number += len(new)
            await self._outbox.publish_many(self._tx, [placed(number) for number in new])
            self.kept += new
        elif step == "statement":
            await self._tx.execute(text("SELECT 1"))
        elif step == "begin":
            self._open.append((await self._tx.begin_nested(), len(self.kept)))
        elif self._open:
            position = 0 if step == "outermost" else -1
            savepoint, kept = self._open[position]
            del self._open[position:]
            if step == "release":
                await savepoint.commit()
            else:
                await savepoint.rollback()
                del self.kept[kept:]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, session=st.booleans(), collect=st.booleans(), commit=st.booleans())
async def test_any_sequence_of_savepoints_keeps_what_postgresql_keeps(
    engine: AsyncEngine, steps: list[str], session: bool, collect: bool, commit: bool
) -> None:
    """Whatever is begun, released, rolled back and published: the rows are those of a model with a stack of savepoints,
    in the order of the publishes, and it wakes if and only if any are committed."""
    async with engine.begin() as connection:
        await connection.execute(ROW.delete())
    woken: list[None] = []
    outbox = Outbox("orders", collect=collect, wake=lambda: woken.append(None))
    async with AsyncSession(engine) if session else engine.connect() as tx:
        transaction = await tx.begin()
        walk = Walk(tx, outbox)
        if not session:
            steps = [step for step in steps if step != "outermost"]  # Core does not close what is inside of it
        for step in steps:
            await walk.take(step)
        await (transaction.commit() if commit else transaction.rollback())
    kept = walk.kept if commit else []
    assert await numbers(engine) == bodies(*kept)
    assert len(woken) == bool(kept)
