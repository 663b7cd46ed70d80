"""Sending again what is older than an inbox remembers: told before anything moves."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text

from relmsg.broker import error_headers as names
from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.inbox.memory import Memory
from relmsg.inbox.pruning import Pruning
from relmsg.schema import tables
from relmsg.topology import Queue, Topology
from tests.support.terminal import seen

SOURCE, ERRORS = "billing.orders", "billing.orders.errors"
NOW = datetime.now(UTC)
TOLD = "older than what consumer 'billing' remembers (30 days)"


@pytest.fixture
async def queues(amqp_url):
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))


async def fail(broker, message_id, days, consumer="billing"):
    """A message in the error queue that was published so many days ago."""
    headers = {names.REASON: "x", names.ORIGINAL_QUEUE: SOURCE, names.FAILED_AT: NOW.isoformat()}
    if consumer:
        headers[names.CONSUMER] = consumer
    at = NOW - timedelta(days=days)
    await broker.publish(b"{}", routing_key=ERRORS, message_id=message_id, timestamp=at, headers=headers)


async def keep(engine, **windows):
    """Store dedup windows, in days."""
    async with engine.begin() as connection:
        for consumer, days in windows.items():
            await Pruning().set_window(connection, consumer, None if days is None else timedelta(days=days))


async def ran(processes, *arguments, **variables):
    process = await processes.relmsg(*arguments, **variables)
    return await process.wait(within=60), process.stdout, process.stderr


async def test_a_requeue_tells_what_the_inbox_has_forgotten(engine, broker, queues, processes):
    """Two of four messages are older than the window: a line says so, dry run or not, and --json has the number."""
    await keep(engine, mails=90, billing=30, audit=None)
    messages = [("a", 31, "billing"), ("b", 29, "billing"), ("c", 400, None), ("d", 400, "audit")]
    for message_id, days, consumer in messages:
        await fail(broker, message_id, days, consumer)
    requeue = ("errors", "requeue", "--queue", SOURCE)
    code, output, problems = await ran(processes, *requeue, "--dry-run")
    assert (code, output) == (0, f"4 messages match in {ERRORS}\n")
    assert f"2 messages are {TOLD}" in problems
    assert problems.count("\n") == 1
    code, output, problems = await ran(processes, *requeue, "--id", "b", "--yes")
    assert (code, problems) == (0, "")
    code, output, problems = await ran(processes, *requeue, "--yes", "--json")
    assert code == 0
    (row,) = json.loads(output)
    assert (row["requeued"], row["older_than_window"]) == (3, 2)
    assert TOLD in problems


async def test_what_was_pruned_by_an_age_counts_as_forgotten(engine, broker, queues, processes):
    """`relmsg inbox prune --older-than` forgets more than the window: a message before that moment is told too."""
    await keep(engine, billing=None)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE relmsg.inbox_window SET pruned_before = now() - interval '7 days'"))
    windows = await Memory(engine, "relmsg").windows()
    assert abs(windows["billing"].forgets_before - (NOW - timedelta(days=7))) < timedelta(hours=1)
    await fail(broker, "a", 8)
    await fail(broker, "b", 6)
    code, _, problems = await ran(processes, "errors", "requeue", "--queue", SOURCE, "--yes")
    assert code == 0
    assert "1 message is older than what consumer 'billing' remembers: " in problems


async def test_a_requeue_needs_no_database(broker, queues, processes):
    """Without a database nothing is told of ages; one that does not answer is told; the messages move."""
    await fail(broker, "a", 400)
    requeue = ("errors", "requeue", "--queue", SOURCE, "--yes")
    away = "postgresql+asyncpg://u:ge-heim@127.0.0.1:1/d"
    code, output, problems = await ran(processes, *requeue, RELMSG_DATABASE_URL=away)
    assert (code, output) == (0, f"1 message matches in {ERRORS}\nrequeued 1 of 1\n")
    assert "cannot be told" in problems
    assert "ge-heim" not in problems
    assert problems.count("\n") == 1


async def test_on_a_terminal_it_is_told_before_the_question(engine, broker, queues, amqp_url, database_url):
    """Whoever is asked has read it; whoever says no has moved nothing."""
    await keep(engine, billing=30)
    await fail(broker, "a", 31)
    urls = {"RELMSG_AMQP_URL": amqp_url, "RELMSG_DATABASE_URL": database_url}
    found = await seen("errors", "requeue", "--queue", SOURCE, answer="n", columns=200, **urls)
    assert found.code == 0
    told = found.written
    assert told.index(TOLD) < told.index("Requeue 1?")
    assert await broker.count(ERRORS) == 1


async def test_a_retry_of_parked_rows_tells_it_too(engine, processes):
    """Parked messages of the outbox that are older than the shortest window in their database are counted."""
    await keep(engine, billing=30, mails=90)
    row = tables().outbox_message
    async with engine.begin() as connection:
        for days in (5, 31, 400):
            at = NOW - timedelta(days=days)
            await connection.execute(
                insert(row).values(exchange="shop", routing_key="r", body=b"", created_at=at, parked_at=NOW)
            )
    code, output, problems = await ran(processes, "outbox", "retry", "--all", "--dry-run")
    assert (code, output) == (0, "3 messages would come back\n")
    assert f"2 messages are {TOLD}" in problems
    code, output, problems = await ran(processes, "outbox", "retry", "--all", "--json")
    assert (code, json.loads(output)["messages"]) == (0, 3)
    assert TOLD in problems
