"""A coordinator whose database is away for long keeps no half message from the broker."""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.clock import SystemClock
from relmsg.half.coordinator import Coordinator
from relmsg.half.protocol import COORDINATOR
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Proxy
from tests.support.running import running_inside

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.producer_group = 'g' THEN RAISE EXCEPTION 'not now' USING ERRCODE = '57P03'; END IF;
    RETURN NEW;
END $$
"""
TRIGGER = "CREATE TRIGGER refuse BEFORE INSERT ON relmsg.half_message FOR EACH ROW EXECUTE FUNCTION refuse()"


class Fast(SystemClock):
    """A clock that runs thirty times as fast: a minute is two seconds."""

    def monotonic(self) -> float:
        return super().monotonic() * 30

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 30)


async def prepare(broker: Broker, count: int) -> set[UUID]:
    said = {"relmsg-half": "prepare", "relmsg-half-group": "g", "relmsg-half-exchange": ""}
    said["relmsg-half-routing-key"] = "q"
    ids = {uuid4() for _ in range(count)}
    for each in ids:
        await broker.publish(b"x", routing_key=COORDINATOR, headers=said, message_id=str(each), message_type="t")
    return ids


async def prepared(engine: AsyncEngine) -> set[UUID]:
    async with engine.connect() as connection:
        return set((await connection.execute(text("SELECT half_id FROM relmsg.half_message"))).scalars())


def coordinator_of(database_url: str, amqp_url: str, clock: SystemClock) -> Coordinator:
    return Coordinator(Settings(database_url=database_url, amqp_url=amqp_url, probes=""), clock=clock)


async def test_a_long_pause_gives_the_half_messages_back(
    broker: Broker, amqp_url: str, database_url: str, engine: AsyncEngine
) -> None:
    """The database is away for more than a minute: the broker has all half messages again, none of them waits unacked;
    when it answers each is kept."""
    async with (
        Proxy.before(database_url) as proxy,
        running_inside(coordinator_of(proxy.through(database_url), amqp_url, Fast())) as coordinator,
    ):
        await proxy.refuse()
        proxy.reset()
        ids = await prepare(broker, 30)

        async def given_back() -> None:
            assert await broker.consumers(COORDINATOR) == 0
            assert await broker.count(COORDINATOR) == len(ids)
            assert "PostgreSQL" in (coordinator.ready() or "")
            assert coordinator.live() is None

        await eventually(given_back, within=40)
        await proxy.accept()

        async def all_kept() -> None:
            assert await prepared(engine) == ids
            assert coordinator.ready() is None

        await eventually(all_kept, within=40)
        ids |= await prepare(broker, 1)
        await eventually(all_kept, within=20)
    assert await broker.count(COORDINATOR) == 0


async def test_a_database_that_is_read_only_for_long_has_the_half_messages_given_back(
    broker: Broker, amqp_url: str, database_url: str, engine: AsyncEngine
) -> None:
    """A server that answers and does not write, as after a failover, is away as well until it writes again."""
    name = database_url.rpartition("/")[2].partition("?")[0]
    async with (
        engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection,
        running_inside(coordinator_of(database_url, amqp_url, Fast())) as coordinator,
    ):
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        await connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
        await connection.execute(text(f"{others} AND pid <> pg_backend_pid()"))
        ids = await prepare(broker, 3)

        async def given_back() -> None:
            assert await broker.consumers(COORDINATOR) == 0
            assert await broker.count(COORDINATOR) == len(ids)
            assert coordinator.ready() is not None

        await eventually(given_back, within=40)
        await connection.execute(text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'))
        await connection.execute(text(f"{others} AND pid <> pg_backend_pid()"))

        async def all_kept() -> None:
            assert await prepared(engine) == ids

        await eventually(all_kept, within=40)


async def test_a_half_message_that_waits_for_a_trigger_is_not_given_back_again_and_again(
    broker: Broker, amqp_url: str, database_url: str, engine: AsyncEngine
) -> None:
    """The database writes, and a trigger refuses one half message for now: giving that back would only count it."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql(REFUSE)
        await connection.exec_driver_sql(TRIGGER)
    clock = Fast()
    async with running_inside(coordinator_of(database_url, amqp_url, clock)) as coordinator:
        ids = await prepare(broker, 1)

        def has_waited_for_long() -> None:
            assert coordinator._intake is not None
            assert coordinator._intake.waiting_for_database_seconds() > 150

        await eventually(has_waited_for_long, within=40)
        assert await broker.consumers(COORDINATOR) == 1
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DROP TRIGGER refuse ON relmsg.half_message")

        async def kept() -> None:
            assert await prepared(engine) == ids

        await eventually(kept, within=40)
