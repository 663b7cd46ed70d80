"""What PostgreSQL may answer to a running relay: it waits, says so once, and goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.database import create_engine
from relmsg.db.failures import FailureKind, failure_kind
from relmsg.errors import DatabaseAway
from relmsg.outbox.driver import Driver
from relmsg.outbox.relay import Relay
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.faults import CODES, Faults, faults
from tests.support.relaying import emptied, waiting
from tests.support.running import running_inside

Sessions = async_sessionmaker[AsyncSession]
OUTBOX = Outbox("orders")

# The statements that every relay runs, by words that no other one has. Those it runs for late commits only are the
# driver's test below: no loop tells one statement from another.
STATEMENTS = {
    "read": "%unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::int[])%",
    "refill": "%unnest($1::text[], $2::bigint[], $3::int[])%",
    "tops": "%ORDER BY o.slot DESC%",
    "delete": "DELETE FROM %outbox_message%",
    "park": "%SET parked_at%",
    "note": "%SET last_error = n.reason%",
    "enlist": "%INSERT INTO %outbox_relay%",
    "renew": "%WHERE owner = $1 RETURNING slot%",
    "count relays": "SELECT count(*) AS relays%",
    "take": "%epoch = epoch + 1%",
    "release": "%SET owner = NULL%",
}
MEASURES = {"oldest": "%AS oldest_seconds%", "count": "%SELECT count(*) AS backlog%"}


class Hurried:
    """The machine's clock, on which nobody sleeps for longer than ten milliseconds."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


@pytest.fixture
async def database(engine: AsyncEngine, database_url: str) -> AsyncIterator[Faults]:
    async with faults(engine, database_url) as made:
        yield made


@asynccontextmanager
async def hurried_relay(database_url: str, amqp_url: str, **given: Any) -> AsyncIterator[Relay]:
    settings = Settings(
        database_url=database_url, amqp_url=amqp_url, probes="", poll_min=0.005, poll_max=0.02, listen=False, **given
    )
    async with running_inside(Relay(settings, clock=Hurried())) as relay:
        yield relay


async def commit(sessions: Sessions, *messages: Message) -> None:
    async with sessions() as session, session.begin():
        await OUTBOX.publish_many(session, messages)


def to(queue: str, body: object = "x", **given: Any) -> Message:
    return Message(type="t", body=str(body), routing_key=queue, **given)


async def something_of_each_kind(engine: AsyncEngine, sessions: Sessions) -> None:
    """Messages that go, a hot key, a row that cannot be sent, and a message without a route."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, headers)"
            " VALUES ('', 'q', '', '{\"a\": 1.5}')"
        )
    await commit(sessions, *(to("q", n) for n in range(20)), *(to("q", n, ordering_key="hot") for n in range(100)))
    await commit(sessions, to("nowhere"))


async def owns_all(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        count = text("SELECT count(*) FROM relmsg.outbox_slot WHERE owner IS NOT NULL")
        assert await connection.scalar(count) == 64


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records if record.name == "relmsg.outage"]


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_whatever_a_statement_of_the_relay_meets_is_waited_for(
    statement: str,
    database: Faults,
    engine: AsyncEngine,
    sessions: Sessions,
    amqp_url: str,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Fifty codes one after another, each raised inside this statement: the relay says once that it waits, and when
    they are over it does all that it had to do."""
    caplog.set_level(logging.INFO, logger="relmsg.outage")
    await broker.queue("q")
    await something_of_each_kind(engine, sessions)
    await database.arm(STATEMENTS[statement])
    async with hurried_relay(database.url, amqp_url, lease=3.0, renew=1.0):
        if statement == "release":  # a second relay: the first must give half of its slots up
            await eventually(lambda: owns_all(engine))
            await database.execute(
                "INSERT INTO relmsg.outbox_relay (owner, expires_at) VALUES ('another', clock_timestamp() + '1 hour')"
            )
        await database.spent()

        async def done() -> None:
            async with engine.connect() as connection:
                rows = (
                    await connection.execute(
                        text(
                            "SELECT routing_key, parked_at IS NOT NULL, last_error IS NOT NULL"
                            " FROM relmsg.outbox_message WHERE slot IN (SELECT slot FROM relmsg.outbox_slot"
                            " WHERE owner IS NOT NULL)"
                        )
                    )
                ).all()
            assert all(tuple(row) in {("q", True, True), ("nowhere", False, True)} for row in rows)

        await eventually(done, within=20)

        async def said() -> None:
            lines = told(caplog)
            assert lines == ["WARNING", "INFO"] * (len(lines) // 2)
            # A refusal for the sake of one row is no outage: what came before and after it are two.
            assert 2 <= len(lines) <= (24 if statement in ("park", "note") else 2)

        await eventually(said)


@pytest.mark.parametrize("measure", MEASURES)
async def test_a_backlog_that_cannot_be_measured_stops_nothing(
    measure: str, database: Faults, engine: AsyncEngine, sessions: Sessions, amqp_url: str, broker: Broker
) -> None:
    """Messages are sent while what waits cannot be counted, and the relay stays ready."""
    await broker.queue("q")
    await commit(sessions, to("nowhere"))  # so that there is something to measure
    await database.arm(MEASURES[measure])
    async with hurried_relay(database.url, amqp_url) as relay:
        for _ in range(3):
            await commit(sessions, to("q"))

            async def sent() -> None:
                assert await waiting(engine) == 1

            await eventually(sent)
            assert relay.ready() is None
        await database.spent()


async def test_slots_that_cannot_be_given_back_do_not_change_the_end(
    database: Faults, engine: AsyncEngine, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay that is told to stop ends without an error, and says that its slots are free when the lease ends."""
    async with hurried_relay(database.url, amqp_url):
        await database.arm("DELETE FROM %outbox_relay% WHERE owner = $1", ["53100"])
    assert "the slots could not be given back" in caplog.text


async def test_a_relay_that_ends_by_a_fault_of_its_own_gives_its_slots_back(
    database: Faults, engine: AsyncEngine, sessions: Sessions, amqp_url: str, broker: Broker
) -> None:
    """A statement that is wrong ends the relay, and so does its cancellation; its slots are free at once."""
    await broker.queue("q")
    for code in ("42601", None):
        settings = Settings(database_url=database.url, amqp_url=amqp_url, probes="", listen=False)
        relay = Relay(settings)
        running = asyncio.create_task(relay.run(asyncio.Event()))
        await eventually(lambda: owns_all(engine))
        if code is None:
            running.cancel()
        else:
            await database.arm("DELETE FROM %outbox_message%", [code] * 100)
            await commit(sessions, to("q"))
        (ended,) = await asyncio.gather(running, return_exceptions=True)
        if code is None:
            assert isinstance(ended, asyncio.CancelledError)
        else:
            assert failure_kind(ended) is FailureKind.OURS
            await database.disarm()
        async with engine.connect() as connection:
            assert not (await connection.execute(text("SELECT owner FROM relmsg.outbox_relay"))).all()
            still = text("SELECT slot FROM relmsg.outbox_slot WHERE owner IS NOT NULL")
            assert not (await connection.execute(still)).all()


@pytest.mark.parametrize(
    ("setting", "words"),
    [("lock_timeout = '50ms'", "lock timeout"), ("statement_timeout = '200ms'", "statement timeout")],
)
async def test_a_timeout_set_on_the_role_is_waited_out(
    setting: str,
    words: str,
    database: Faults,
    engine: AsyncEngine,
    sessions: Sessions,
    amqp_url: str,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While another session holds the tables the relay waits, whatever ends its statements; then it goes on."""
    caplog.set_level(logging.INFO, logger="relmsg.outage")
    await broker.queue("q")
    await database.execute(f"ALTER ROLE {database.role} SET {setting}")
    async with hurried_relay(database.url, amqp_url) as relay:
        await commit(sessions, to("q"))
        await emptied(engine)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("LOCK TABLE relmsg.outbox_message, relmsg.outbox_slot")

            async def waits() -> None:
                assert words in (relay.ready() or "")

            await eventually(waits)
        await commit(sessions, to("q"))
        await emptied(engine)

        async def well() -> None:
            assert relay.ready() is None

        await eventually(well)
        assert told(caplog) == ["WARNING", "INFO"]


async def test_a_server_that_turns_read_only_is_waited_for(
    database: Faults, engine: AsyncEngine, sessions: Sessions, amqp_url: str, broker: Broker
) -> None:
    """As after a failover to a standby: every new session is read-only, and the old ones are ended."""
    await broker.queue("q")
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{database.role}'"
    async with hurried_relay(database.url, amqp_url) as relay:
        await database.execute(f"ALTER ROLE {database.role} SET default_transaction_read_only = on")
        await database.execute(end)
        await commit(sessions, to("q"))

        async def waits() -> None:
            assert "read-only" in (relay.ready() or "")

        await eventually(waits)
        assert relay.live() is None
        await database.execute(f"ALTER ROLE {database.role} RESET default_transaction_read_only")
        await database.execute(end)
        await emptied(engine)

        async def well() -> None:
            assert relay.ready() is None

        await eventually(well)


async def test_a_permission_that_is_taken_away_is_waited_for(
    database: Faults, engine: AsyncEngine, sessions: Sessions, amqp_url: str, broker: Broker
) -> None:
    """A running relay whose right to delete is revoked waits until it has it back; so does one locked out."""
    await broker.queue("q")
    async with hurried_relay(database.url, amqp_url) as relay:
        for away, back in (
            ("REVOKE DELETE ON relmsg.outbox_message FROM {}", "GRANT DELETE ON relmsg.outbox_message TO {}"),
            ("ALTER ROLE {} NOLOGIN", "ALTER ROLE {} LOGIN"),
        ):
            await database.execute(away.format(database.role))
            await database.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{database.role}'"
            )
            await commit(sessions, to("q"))

            async def waits() -> None:
                assert "refused" in (relay.ready() or "")

            await eventually(waits)
            await database.execute(back.format(database.role))
            await emptied(engine)


async def test_a_driver_tells_every_state_of_the_server_as_one_error(engine: AsyncEngine) -> None:
    """Whatever statement it was, the real server's refusal is DatabaseAway, which every loop of ours waits for."""
    a_few = asyncio.Semaphore(10)  # side by side, for contention is tried for ten seconds

    async def tells(code: str) -> None:
        async with a_few:
            driver = Driver(engine)
            with pytest.raises(DatabaseAway) as raised:
                await driver.fetch(f"DO $$ BEGIN RAISE 'no {code}' USING ERRCODE = '{code}'; END $$")
            assert f"no {code}" in str(raised.value)
            assert raised.value.__cause__ is not raised.value
            assert await driver.fetch("SELECT 1 AS one")
            await driver.close()

    await asyncio.gather(*map(tells, CODES))


async def test_a_driver_is_read_committed_whatever_the_default(database: Faults) -> None:
    """The relay's statements are no serializable transactions, also where the role's default says so."""
    await database.execute(f"ALTER ROLE {database.role} SET default_transaction_isolation = 'serializable'")
    own = create_engine(database.url)
    driver = Driver(own)
    try:
        (row,) = await driver.fetch("SELECT current_setting('transaction_isolation') AS level")
        assert row["level"] == "read committed"
    finally:
        await driver.close()
        await own.dispose()
