"""Commands that take longer than a second show on a terminal how far they are, and with --json they do not."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from relmsg import migrate
from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.inbox.pruning import Pruning
from relmsg.testing import eventually
from relmsg.topology import Queue, Topology
from tests.support.proxy import Proxy
from tests.support.terminal import seen

SOURCE, ERRORS = "billing.orders", "billing.orders.errors"
ROWS = 1500  # two batches
OUTBOX = text(
    "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, parked_at) "
    f"SELECT 'shop', 'r', '', now() FROM generate_series(1, {ROWS})"
)
INBOX = text(
    "INSERT INTO relmsg.inbox_message (consumer, source, message_id, handled_at) "
    f"SELECT 'billing', 's', i::text, now() - interval '60 days' + i * interval '1 s' FROM generate_series(1, {ROWS}) i"
)
LAST_OF_OUTBOX = text("SELECT id FROM relmsg.outbox_message ORDER BY id DESC LIMIT 1 FOR UPDATE")
LAST_OF_INBOX = text("SELECT FROM relmsg.inbox_message ORDER BY handled_at DESC LIMIT 1 FOR UPDATE")
WAITS_LONG = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND clock_timestamp() - query_start > interval '1.1 s'"
)


async def slow(engine, lock, *arguments, **variables):
    """The command's terminal, where a row of the second batch is held for longer than a second."""
    async with engine.connect() as holder, engine.connect() as looking:
        looking = await looking.execution_options(isolation_level="AUTOCOMMIT")
        await holder.execute(lock)
        running = asyncio.create_task(seen(*arguments, **variables))

        async def waits():
            assert await looking.scalar(WAITS_LONG) == 1

        await eventually(waits, within=30)
        await holder.rollback()
        return await running


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (("retry", "--all"), "brought back"),
        (("redirect", "--exchange", "shop", "--to-exchange", "other", "--yes"), "redirected"),
        (("drop", "--exchange", "shop", "--yes"), "dropped"),
        (("park", "--exchange", "shop"), "parked"),
    ],
)
async def test_verbs_of_the_outbox_show_a_bar(engine, database_url, arguments, verb):
    """A change of rows that waits for a lock shows a bar; in the end only the result stands."""
    async with engine.begin() as connection:
        await connection.execute(OUTBOX)
        if verb == "parked":
            await connection.execute(text("UPDATE relmsg.outbox_message SET parked_at = NULL"))
    found = await slow(engine, LAST_OF_OUTBOX, "outbox", *arguments, RELMSG_DATABASE_URL=database_url)
    assert found.code == 0
    assert "100%" in found.written
    assert verb in found.written
    assert str(ROWS) in found.lines[-1]


async def test_with_json_no_bar_is_shown(engine, database_url):
    """What a program reads is JSON and nothing else, also on a terminal."""
    async with engine.begin() as connection:
        await connection.execute(OUTBOX)
    arguments = ("outbox", "drop", "--exchange", "shop", "--yes", "--json")
    found = await slow(engine, LAST_OF_OUTBOX, *arguments, RELMSG_DATABASE_URL=database_url)
    assert found.code == 0
    assert "%" not in found.written
    assert len(found.lines) == 1


async def test_pruning_an_inbox_shows_a_bar(engine, database_url):
    """Forgetting that waits for a row shows how much of it is done."""
    async with engine.begin() as connection:
        await connection.execute(INBOX)
        await Pruning().set_window(connection, "billing", None)
    arguments = ("inbox", "prune", "--older-than", "7d", "--yes")
    found = await slow(engine, LAST_OF_INBOX, *arguments, RELMSG_DATABASE_URL=database_url)
    assert found.code == 0
    assert "forgetting" in found.written
    assert "%" in found.written
    assert found.lines[-1].startswith(f"billing: forgot {ROWS} messages")


async def test_an_upgrade_shows_a_bar(engine, database_url):
    """Building an index on a large table, here behind another transaction, is told by name."""
    async with engine.begin() as connection:
        for _ in range(15):
            await connection.execute(text(INBOX.text.replace("i::text", "gen_random_uuid()::text")))
        await connection.execute(text("DROP INDEX relmsg.inbox_message_handled_at"))
    found = await slow(engine, LAST_OF_INBOX, "db", "upgrade", RELMSG_DATABASE_URL=database_url)
    assert found.code == 0
    assert "building index inbox_message_handled_at" in found.written
    assert found.lines[-1] == "schema relmsg: is up to date"
    assert await migrate.check(engine) == []


@pytest.mark.parametrize("json", [False, True])
async def test_requeueing_shows_a_bar(broker, amqp_url, json):
    """A requeue at a low rate shows how much of it is done, unless a program reads its output."""
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
    for number in range(6):
        await broker.publish(b"{}", routing_key=ERRORS, message_id=f"m{number}")
    arguments = ("errors", "requeue", "--queue", SOURCE, "--rate", "3", "--yes", *(["--json"] if json else []))
    found = await seen(*arguments, RELMSG_AMQP_URL=amqp_url)
    assert found.code == 0
    assert ("%" in found.written) is not json
    if not json:
        assert found.lines[-1] == "requeued 6 of 6"


@asynccontextmanager
async def slow_network(url):
    """The URL of a network that lets one piece of data through in 50 ms, each way."""

    async def throttle(proxy):
        while True:
            proxy.heal()
            await asyncio.sleep(0)
            proxy.blackhole()
            await asyncio.sleep(0.05)

    async with Proxy.before(url) as proxy:
        throttling = asyncio.create_task(throttle(proxy))
        try:
            yield proxy.through(url)
        finally:
            throttling.cancel()
            proxy.heal()


@pytest.mark.parametrize("json", [False, True])
async def test_purging_shows_a_bar(broker, amqp_url, json):
    """A purge over a slow network shows how much of it is done, unless a program reads its output."""
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
    for number in range(60):
        await broker.publish(bytes(60_000), routing_key=ERRORS, message_id=f"m{number}")
    arguments = ("errors", "purge", "--queue", SOURCE, "--yes", *(["--json"] if json else []))
    async with slow_network(amqp_url) as url:
        found = await seen(*arguments, RELMSG_AMQP_URL=url)
    assert found.code == 0
    assert ("%" in found.written) is not json
    if not json:
        assert "removed" in found.written
        assert found.lines[-1] == "removed 60 of 60"
    assert await broker.count(ERRORS) == 0
