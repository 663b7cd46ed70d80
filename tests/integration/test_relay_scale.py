"""What must not slow a relay down: held rows, a hot key, dead rows, rows committed late. Counted, not timed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.outbox.driver import PLANNED_ONCE, Driver
from relmsg.outbox.hot import HotKey
from relmsg.outbox.positions import Range
from relmsg.outbox.relay import Relay
from relmsg.outbox.store import OutboxStore
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.relaying import emptied, relaying, waiting

Sessions = async_sessionmaker[AsyncSession]
OUTBOX = Outbox("orders")


async def fill(engine: AsyncEngine, count: int, *, exchange: str = "", key: str = "NULL", body: str = "i") -> None:
    """So many rows for the queue ``q``, or for its name in another exchange; ``key`` and ``body`` are SQL of ``i``."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.outbox_message (exchange, routing_key, ordering_key, body) "
                f"SELECT '{exchange}', 'q', {key}, convert_to(({body})::text, 'UTF8') "
                f"FROM generate_series(1, {count}) i"
            )
        )


async def vacuumed(engine: AsyncEngine) -> None:
    """Give the outbox its statistics."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE relmsg.outbox_message"))


async def scanned(engine: AsyncEngine) -> int:
    """How many index entries have been returned by scans of the outbox so far."""
    async with engine.connect() as connection:
        return int(
            await connection.scalar(
                text("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'outbox_message'")
            )
            or 0
        )


async def some_reads(relay: Relay, count: int) -> None:
    """Wait until so many reads have been made."""

    def made() -> float:
        return sum(bucket.get() for bucket in relay.metrics.reads._buckets)

    begin = made()

    async def enough() -> None:
        relay.wake()
        assert made() >= begin + count

    await eventually(enough, within=30)


@pytest.mark.parametrize("key", ["NULL", "'k' || (i % 100)"])
async def test_held_rows_are_not_paid_by_each_read(
    key: str, engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads pass rows for a held destination once, others get through meanwhile, and a release sends all in order."""
    monkeypatch.setattr("relmsg.outbox.positions.WINDOW_SECONDS", 1.0)
    await broker.queue("q")
    await fill(engine, 8_000, exchange="missing", key=key)
    await fill(engine, 500)
    async with relaying(database_url, amqp_url) as relay:

        async def others_are_through() -> None:
            assert await broker.count("q") == 500
            assert len(relay._holds) == 1

        await eventually(others_are_through, within=30)

        async def the_window_has_passed() -> None:
            assert not any(relay._reader._positions.open(slot) for slot in range(64))

        await eventually(the_window_has_passed)
        await some_reads(relay, 3)
        before = await scanned(engine)
        await some_reads(relay, 50)
        await asyncio.sleep(1.1)  # PostgreSQL tells its statistics once a second at most
        await some_reads(relay, 3)
        assert await scanned(engine) - before < 10 * 8_000  # not 50 times; a few are the counts of the backlog
        await broker.exchange("missing")
        await broker.queue("late", exchange="missing", routing_key="q")
        await emptied(engine, within=60)
    got = await broker.drain("late")
    assert len(got) == 8_000
    if key != "NULL":
        for name in {each.headers["relmsg-key"] for each in got}:
            mine = [int(each.body) for each in got if each.headers["relmsg-key"] == name]
            assert mine == sorted(mine)


async def test_a_hot_key_takes_no_room_from_its_slot(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Keys that share the slot of a key with thousands of rows are sent long before that one, and all keep order."""
    await broker.queue("q")
    await fill(engine, 3000, key="'hot'")
    await fill(engine, 3000, key="'cold ' || (i % 300)")
    async with engine.connect() as connection:
        same = await connection.scalar(
            text(
                "SELECT count(DISTINCT ordering_key) FROM relmsg.outbox_message WHERE ordering_key <> 'hot' AND slot = "
                "(SELECT slot FROM relmsg.outbox_message WHERE ordering_key = 'hot' LIMIT 1)"
            )
        )
    assert same
    async with relaying(database_url, amqp_url) as relay:

        async def only_the_hot_key_waits() -> None:
            async with engine.connect() as connection:
                assert not await connection.scalar(
                    text("SELECT count(*) FROM relmsg.outbox_message WHERE ordering_key <> 'hot'")
                )
            assert await waiting(engine) > 1000
            assert len(relay._pending) <= relay._pending.lane_room

        await eventually(only_the_hot_key_waits, within=30)
        await emptied(engine, within=120)
    sent: dict[str, list[int]] = {}
    for each in await broker.drain("q"):
        sent.setdefault(each.headers["relmsg-key"], []).append(int(each.body))
    assert sent["hot"] == list(range(1, 3001))
    assert sum(map(len, sent.values())) == 6000
    assert all(bodies == sorted(bodies) for bodies in sent.values())


async def test_a_slot_with_nearly_all_rows_is_not_read_by_the_others(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Where statistics say that one slot has all rows, the other slots are still read by their own index, and not by
    stepping over that one's rows in the primary key."""
    await broker.queue("q")
    await fill(engine, 40_000, key="'hot'")
    await vacuumed(engine)
    async with relaying(database_url, amqp_url):
        await fill(engine, 1000, key="'cold ' || i")

        async def only_the_hot_key_waits() -> None:
            async with engine.connect() as connection:
                cold = "SELECT count(*) FROM relmsg.outbox_message WHERE ordering_key <> 'hot'"
                assert await connection.scalar(text(cold)) == 0

        await eventually(only_the_hot_key_waits, within=60)
        await asyncio.sleep(1.1)  # PostgreSQL tells its statistics once a second at most
    async with engine.connect() as connection:
        stepped_over = await connection.scalar(
            text("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_message_pkey'")
        )
    assert stepped_over < 2 * 41_000  # what was deleted; not 40,000 for each slot at each read


class Explained(Driver):
    """Notes how many pages each statement looked at, and that it did not step through the primary key."""

    async def fetch(self, sql: str, *args: object) -> Sequence[Any]:
        (plan,) = (await super().fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *args))[0][0]
        self.pages = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        assert "outbox_message_pkey" not in str(plan)
        return await super().fetch(sql, *args)


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_read_looks_at_what_it_may_bring_and_nothing_more(analysed: bool, engine: AsyncEngine) -> None:
    """Whatever the statistics say, a read of two hundred ids is not paid for the forty thousand that follow them."""
    await fill(engine, 40_000, key="'hot'")
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT min(slot), min(id) + 1000 FROM relmsg.outbox_message"))
        slot, low = found.one()
    if analysed:
        await vacuumed(engine)
    reader = Explained(engine, planning=PLANNED_ONCE)
    store = OutboxStore(reader, reader, reader, schema="relmsg")
    try:
        assert len(await store.read([Range(slot, low, 50, low + 200)], (), (), ())) == 50
        assert reader.pages < 20
        known = list(range(low, low + 201))
        assert await store.read([Range(slot, low, 50, low + 200)], known, (), ()) == []
        assert reader.pages < 20
        hot = HotKey("hot", slot, low + 39_990 - 1000)
        assert len(await store.refill([(hot, 5)], ())) == 5
        assert reader.pages < 20
        assert await store.overlooked([("hot", low, low + 201)], known, (), most=16) == []
        assert reader.pages < 20
        assert await store.tops([(slot, low + 38_900)]) == [(slot, low + 38_999)]
        assert reader.pages < 20
        assert await store.tops([(slot, low + 38_999)]) == []
        assert reader.pages < 20
        assert await store.oldest([slot])
        assert reader.pages < 20
    finally:
        await reader.close()


async def test_a_backlog_that_is_older_than_the_relay_needs_no_look_back(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keyed rows that were committed before the relay began leave at once and in order: none can be overlooked."""
    monkeypatch.setattr("relmsg.outbox.reader.CLOCK_STEP", timedelta(0))
    monkeypatch.setattr("relmsg.outbox.reader.Reader._look_back", _never)
    monkeypatch.setattr("relmsg.outbox.reader.Reader._prove", _never)
    await broker.queue("q")
    await fill(engine, 3000, key="'k' || (i % 100)")
    async with relaying(database_url, amqp_url):
        await emptied(engine, within=30)
    got = await broker.drain("q")
    for name in {each.headers["relmsg-key"] for each in got}:
        mine = [int(each.body) for each in got if each.headers["relmsg-key"] == name]
        assert mine == sorted(mine)
        assert len(mine) == 30


@pytest.mark.parametrize("cheap", [True, False])
async def test_an_earlier_row_that_was_committed_late_goes_first(
    cheap: bool,
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    amqp_url: str,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D1: the reader is past a row of a key when it commits; the next row of the key does not overtake it, also where
    no look-back can be afforded."""
    if not cheap:
        monkeypatch.setattr("relmsg.outbox.reader.Reader._look_back", _never)
    await broker.queue("q")
    async with relaying(database_url, amqp_url):
        for round_ in range(5):
            async with sessions() as slow, slow.begin():
                await OUTBOX.publish(slow, to(2 * round_))
                async with sessions() as quick, quick.begin():
                    await OUTBOX.publish_many(quick, [to(-1, ordering_key=f"k{n}") for n in range(200)])
                sent = 200 * (round_ + 1) + 2 * round_

                async def others(sent: int = sent) -> None:
                    assert await broker.count("q") == sent

                await eventually(others)
            async with sessions() as next_, next_.begin():
                await OUTBOX.publish(next_, to(2 * round_ + 1))
            await emptied(engine, within=20)
    bodies = [int(each.body) for each in await broker.drain("q") if each.headers["relmsg-key"] == "k"]
    assert bodies == list(range(10))


async def test_a_message_of_a_long_transaction_is_sent_when_that_ends(
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    amqp_url: str,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transaction stays open for longer than the window, and others go on meanwhile: its message is sent soon after
    its commit, long before the sweep of every minute."""
    monkeypatch.setattr("relmsg.outbox.positions.WINDOW_SECONDS", 2.0)
    await broker.queue("q")
    async with relaying(database_url, amqp_url) as relay:
        positions = relay._reader._positions
        async with sessions() as slow, slow.begin():
            await OUTBOX.publish(slow, to(1))
            await fill(engine, 500)

            async def the_window_has_passed() -> None:
                assert await broker.count("q") == 500
                assert not any(positions.open(slot) for slot in range(64))

            await eventually(the_window_has_passed, within=20)
            assert positions._overdue
        await emptied(engine, within=20)
        assert await broker.count("q") == 501


async def test_an_outage_of_the_database_is_told_once(
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    amqp_url: str,
    broker: Broker,
    services: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While PostgreSQL is away the relay says so once, and once that it is back; then it goes on."""
    caplog.set_level(logging.INFO, logger="relmsg.outage")
    await broker.queue("q")
    async with relaying(database_url, amqp_url) as relay:
        await asyncio.to_thread(services.stop_postgres)
        try:

            async def unready() -> None:
                assert relay.ready() is not None

            await eventually(unready, within=20)
            await asyncio.sleep(2.0)  # time for what would be said again and again
        finally:
            await asyncio.to_thread(services.start_postgres)
        async with sessions() as session, session.begin():
            await OUTBOX.publish(session, to(1))
        await emptied(engine, within=30)

        async def told() -> None:
            levels = [record.levelname for record in caplog.records if record.name == "relmsg.outage"]
            assert levels == ["WARNING", "INFO"]

        await eventually(told)


def to(body: int, *, ordering_key: str = "k") -> Message:
    return Message(type="t", body=str(body), routing_key="q", ordering_key=ordering_key)


async def _never(_: Any) -> bool:
    return False
