"""A trigger or a constraint of the user's refuses one half message: the coordinator goes on with the others."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.half.coordinator import Coordinator
from relmsg.half.protocol import checks_of
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.running import running_inside

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.type = 'held' THEN RAISE EXCEPTION 'this row is evidence' USING ERRCODE = '{code}'; END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$
"""
TRIGGER = """
CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON relmsg.half_message FOR EACH ROW EXECUTE FUNCTION refuse()
"""
ROWS = """
INSERT INTO relmsg.half_message (half_id, producer_group, state, type, routing_key, prepared_at, next_check_at,
                                 checks, check_sent, check_received, max_checks, decided_at, decided_by)
SELECT gen_random_uuid(), CAST(:group AS text), state, CASE WHEN n <= held THEN 'held' ELSE 't' END, 'q', now(),
       CASE WHEN state = 'PREPARED' THEN clock_timestamp() - interval '1 h' + n * interval '1 s' END,
       checks, checks, checks, 3,
       CASE WHEN state = 'COMMITTED' THEN now() - interval '9 days' END,
       CASE WHEN state = 'COMMITTED' THEN 'a test' END
  FROM (SELECT CAST(:held AS int) AS held, CAST(:free AS int) AS free, CAST(:checks AS int) AS checks,
               CAST(:state AS text) AS state) AS given,
       generate_series(1, held + free) AS n
"""


async def refusing(engine: AsyncEngine, code: str, *, held: int, free: int, **row: object) -> None:
    """So many rows, the oldest of which are refused by a trigger."""
    values = {"group": "shop", "state": "PREPARED", "checks": 0, "held": held, "free": free} | row
    async with engine.begin() as connection:
        await connection.execute(text(ROWS), values)
        if not (await connection.scalar(text("SELECT count(*) FROM pg_trigger WHERE tgname = 'refuse'"))):
            await connection.exec_driver_sql(REFUSE.format(code=code))
            await connection.exec_driver_sql(TRIGGER)


async def count(engine: AsyncEngine, which: str) -> int:
    async with engine.connect() as connection:
        found = await connection.scalar(text(f"SELECT count(*) FROM relmsg.half_message WHERE {which}"))
    return int(found or 0)


def coordinator_of(database_url: str, amqp_url: str) -> Coordinator:
    return Coordinator(
        Settings(database_url=database_url, amqp_url=amqp_url, probes="", half_check_every=600), scan_every=0.2
    )


def told(caplog: pytest.LogCaptureFixture, work: str) -> int:
    return sum(f"cannot be {work}" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize(("code", "held"), [("P0001", 1), ("23514", 12)])
async def test_a_half_message_that_may_not_be_changed_keeps_no_other_from_being_checked(
    code: str,
    held: int,
    engine: AsyncEngine,
    database_url: str,
    amqp_url: str,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the refused are the oldest: all others are asked for, each refused one is told once."""
    await refusing(engine, code, held=held, free=15)
    async with running_inside(coordinator_of(database_url, amqp_url)) as coordinator:

        async def asked() -> None:
            assert await count(engine, "check_sent = 1") == 15
            assert told(caplog, "checked") == held
            assert coordinator.ready() is None

        await eventually(asked, within=30)
    assert await broker.count(checks_of("shop").name) == 15
    assert told(caplog, "checked") == held
    assert all(each.levelno == logging.ERROR for each in caplog.records if "cannot be checked" in each.getMessage())


async def test_a_half_message_that_may_not_be_changed_keeps_no_other_from_being_parked(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """What was checked often enough is parked, what is due is asked for, and the refused one is told."""
    await refusing(engine, "P0001", held=1, free=5, checks=3)
    await refusing(engine, "P0001", held=0, free=4)
    async with running_inside(coordinator_of(database_url, amqp_url)) as coordinator:

        async def parked() -> None:
            assert await count(engine, "state = 'PARKED'") == 5
            assert await count(engine, "check_sent = 1") == 4
            assert coordinator.ready() is None

        await eventually(parked, within=30)
    assert told(caplog, "parked") == 1


async def test_a_half_message_that_may_not_be_changed_keeps_its_group_from_nothing(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A group that takes no more is postponed but for the refused one, and other groups are asked."""
    queue = await broker.queue(checks_of("full").name)
    for _ in range(100):
        await broker.publish(b"", routing_key=queue)
    await refusing(engine, "23514", held=1, free=5, group="full")
    await refusing(engine, "23514", held=0, free=4)
    async with running_inside(coordinator_of(database_url, amqp_url)) as coordinator:

        async def postponed() -> None:
            assert await count(engine, "producer_group = 'full' AND next_check_at > clock_timestamp()") == 5
            assert await count(engine, "check_sent = 1") == 4
            assert coordinator.ready() is None

        await eventually(postponed, within=30)
    assert told(caplog, "checked") == 1


async def test_a_half_message_that_may_not_be_deleted_keeps_no_other_from_being_pruned(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Old ended half messages are forgotten, and the refused ones stay and are told."""
    await refusing(engine, "23503", held=2, free=20, state="COMMITTED")
    async with running_inside(coordinator_of(database_url, amqp_url)) as coordinator:

        async def pruned() -> None:
            assert await count(engine, "TRUE") == 2
            assert coordinator.ready() is None

        await eventually(pruned, within=30)
    assert told(caplog, "pruned") == 2


async def test_a_trigger_that_refuses_every_half_message_makes_the_coordinator_not_ready(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """It is no half message's fault then: the coordinator says so, and goes on when the trigger is gone."""
    await refusing(engine, "P0001", held=20, free=0)
    async with running_inside(coordinator_of(database_url, amqp_url)) as coordinator:

        def tells() -> None:
            assert "this row is evidence" in (coordinator.ready() or "")

        await eventually(tells, within=30)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DROP TRIGGER refuse ON relmsg.half_message")

        async def some_asked() -> None:
            assert await count(engine, "check_sent = 1") > 0
            assert coordinator.ready() is None

        await eventually(some_asked, within=30)
