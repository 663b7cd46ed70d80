"""A trigger or a constraint of the user's refuses one row: the others go on, and that one is told."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.relaying import relaying, waiting

Sessions = async_sessionmaker[AsyncSession]
OUTBOX = Outbox("orders")

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.body = 'poison' THEN RAISE EXCEPTION 'this row is evidence' USING ERRCODE = '{code}'; END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER refuse BEFORE {events} ON relmsg.{table} FOR EACH ROW EXECUTE FUNCTION refuse()
"""
REFERENCE = """
CREATE TABLE audit AS SELECT id FROM relmsg.outbox_message WHERE body = 'poison';
ALTER TABLE audit ADD FOREIGN KEY (id) REFERENCES relmsg.outbox_message (id)
"""


async def execute(engine: AsyncEngine, statements: str) -> None:
    """Run statements, of which none but a function has a semicolon inside."""
    head, dollars, tail = statements.partition("$$;")
    async with engine.begin() as connection:
        for each in (head + dollars, *tail.split(";\n")) if dollars else statements.split(";\n"):
            if each.strip():
                await connection.exec_driver_sql(each)


async def publish(sessions: Sessions, *bodies: str, key: str | None = None) -> None:
    async with sessions() as session, session.begin():
        await OUTBOX.publish_many(
            session, [Message(type="t", body=body, routing_key="q", ordering_key=key) for body in bodies]
        )


async def parked(engine: AsyncEngine) -> list[tuple[bytes, str]]:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT body, last_error FROM relmsg.outbox_message WHERE parked_at IS NOT NULL")
        )
        return [(row.body, row.last_error) for row in found]


@pytest.mark.parametrize("by", ["trigger", "constraint", "foreign key"])
async def test_a_row_that_may_not_be_deleted_is_parked_and_the_others_go(
    by: str, engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """The row is sent once and parked with what the database says of it; those of its key and all others leave."""
    await broker.queue("q")
    await publish(sessions, *map(str, range(100)))
    await publish(sessions, "poison", "after it", key="k")
    if by == "foreign key":
        await execute(engine, REFERENCE)
    else:
        await execute(
            engine,
            REFUSE.format(code="P0001" if by == "trigger" else "23514", events="DELETE", table="outbox_message"),
        )
    async with relaying(database_url, amqp_url) as relay:

        async def others_gone() -> None:
            assert await waiting(engine) <= 1

        await eventually(others_gone, within=20)
        await publish(sessions, "later")

        async def set_aside() -> None:
            found = await parked(engine)
            assert [body for body, _ in found] == [b"poison"]
            reason = found[0][1]
            assert "it was sent, and cannot be deleted" in reason
            assert ("evidence" if by != "foreign key" else "foreign key") in reason
            assert await waiting(engine) == 0

        await eventually(set_aside, within=30)
        assert relay.ready() is None
    bodies = [each.body for each in await broker.drain("q", 103)]
    assert sorted(bodies) == sorted([b"poison", b"after it", b"later", *(str(n).encode() for n in range(100))])
    assert await broker.count("q") == 0


async def test_a_row_that_can_neither_be_deleted_nor_parked_is_sent_once_and_told_once(
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    amqp_url: str,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The relay keeps it in memory, and the others go on."""
    caplog.set_level(logging.INFO)
    await broker.queue("q")
    await publish(sessions, "1", "poison", "2")
    await execute(engine, REFUSE.format(code="P0001", events="DELETE OR UPDATE", table="outbox_message"))
    async with relaying(database_url, amqp_url) as relay:

        def told() -> None:
            assert [each for each in caplog.messages if "cannot be parked" in each and "evidence" in each]

        await eventually(told, within=30)
        for n in range(20):
            await publish(sessions, f"more {n}")

            async def gone() -> None:
                assert await waiting(engine) == 1

            await eventually(gone)
        assert relay.ready() is None
        assert relay.live() is None
    assert len(await broker.drain("q", 23)) == 23
    assert await broker.count("q") == 0
    assert len([each for each in caplog.messages if "cannot be parked" in each]) == 1


async def test_of_rows_that_cannot_be_sent_all_are_parked_but_the_one_that_may_not_be(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """One UPDATE is refused for one of them; it is not sent either, and the relay stays ready."""
    await broker.queue("q")
    await execute(engine, REFUSE.format(code="23514", events="UPDATE", table="outbox_message"))
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, headers) SELECT '', 'q',"
            " CASE WHEN n = 3 THEN 'poison' ELSE 'x' END::bytea, '{\"a\": 1.5}' FROM generate_series(1, 8) AS n"
        )
    async with relaying(database_url, amqp_url) as relay:

        async def set_aside() -> None:
            assert [body for body, _ in await parked(engine)] == [b"x"] * 7

        await eventually(set_aside, within=20)
        await publish(sessions, "good")

        async def gone() -> None:
            assert await waiting(engine) == 1

        await eventually(gone)
        assert relay.ready() is None
    assert [each.body for each in await broker.drain("q", 1)] == [b"good"]
    assert await broker.count("q") == 0


async def test_where_no_row_may_be_deleted_all_wait_and_go_when_they_may(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Nothing is parked, nothing is sent twice, and the relay is not ready until the trigger is gone."""
    await broker.queue("q")
    await publish(sessions, *["poison"] * 30)
    await execute(engine, REFUSE.format(code="P0001", events="DELETE", table="outbox_message"))
    async with relaying(database_url, amqp_url) as relay:

        async def waits() -> None:
            assert "evidence" in (relay.ready() or "")
            assert await broker.count("q") == 30

        await eventually(waits, within=20)
        assert relay.live() is None
        await execute(engine, "DROP TRIGGER refuse ON relmsg.outbox_message")

        async def gone() -> None:
            assert (await waiting(engine), await parked(engine)) == (0, [])
            assert relay.ready() is None

        await eventually(gone, within=30)
    assert await broker.count("q") == 30
