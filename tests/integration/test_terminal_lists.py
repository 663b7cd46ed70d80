"""Lists as a person sees them: on a terminal of 80 columns, one line an entry."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from sqlalchemy import insert, text

from compose.local import Services
from relmsg.broker import error_headers as names
from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.schema import tables
from relmsg.topology import Queue, Topology
from tests.support.broker import Broker
from tests.support.terminal import seen
from tests.support.vhosts import VirtualHosts

IDS = [str(uuid4()) for _ in range(4)]
LONG = "a text of an exception that goes on and on " * 20


@pytest.fixture
async def four_errors(amqp_url, broker):
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue("billing.orders"),)))
    for message_id in IDS:
        diagnosis = {
            names.REASON: "retries spent",
            names.ERROR_TYPE: "shop.payments.errors.CardRefused",
            names.EXCEPTION_MESSAGE: LONG,
            names.FAILED_AT: "2026-01-31T12:00:00.000+00:00",
        }
        await broker.publish(
            b"{}",
            routing_key="billing.orders.errors",
            message_id=message_id,
            message_type="order.placed",
            headers=diagnosis,
        )


def one_line_each(lines, ids):
    assert len(lines) == 1 + len(ids), lines
    assert max(map(len, lines)) <= 80
    for message_id, line in zip(ids, lines[1:], strict=True):
        assert line.startswith(message_id)
        assert "…" in line


async def test_an_error_queue_of_four_messages_takes_five_lines(four_errors, amqp_url):
    """Four messages with long diagnoses are four lines under a line of names; --wide shows all of each."""
    listed = ("errors", "list", "--queue", "billing.orders")
    found = await seen(*listed, RELMSG_AMQP_URL=amqp_url)
    one_line_each(found.lines, IDS)
    assert "CardRefused: a text" in found.lines[1]
    found = await seen(*listed, "--wide", RELMSG_AMQP_URL=amqp_url)
    assert found.written.count(LONG.strip()) == 4
    assert "shop.payments.errors.CardRefused" in found.written


async def test_the_outbox_and_half_messages_are_listed_one_line_each(engine, database_url):
    """Rows with long reasons, keys and types keep their ids and take one line."""
    ids = [uuid4() for _ in range(3)]
    row, half = tables().outbox_message, tables().half_message
    async with engine.begin() as connection:
        for each in ids:
            await connection.execute(
                insert(row).values(
                    message_id=each,
                    exchange="shop",
                    routing_key="order." * 20,
                    type="t" * 90,
                    last_error=LONG,
                    body=b"x",
                    ordering_key="k" * 60,
                )
            )
            await connection.execute(
                insert(half).values(half_id=each, producer_group="g" * 70, state="PARKED", type="t" * 90)
            )
    found = await seen("outbox", "list", RELMSG_DATABASE_URL=database_url)
    one_line_each(found.lines, [str(each) for each in ids])
    found = await seen("half", "list", RELMSG_DATABASE_URL=database_url)
    one_line_each(found.lines, [line[:36] for line in found.lines[1:]])
    assert {line[:36] for line in found.lines[1:]} == {str(each) for each in ids}
    for verb in ("outbox", "half"):
        found = await seen(verb, "list", "--wide", RELMSG_DATABASE_URL=database_url)
        assert found.written.count("t" * 90) == 3


async def test_the_status_of_an_outbox_tells_what_it_does_not_name(engine, database_url, relmsg):
    """Of 1,000 held destinations 20 are named, one line each; the line behind them counts the other 980."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, last_error) "
                "SELECT 'shop', 'key.' || k || repeat('x', 80), '', 'returned as unroutable (312 NO_ROUTE)' "
                "FROM generate_series(1, 1000) k CROSS JOIN generate_series(1, 1 + (k % 2)) "
            )
        )
    found = await seen("outbox", "status", RELMSG_DATABASE_URL=database_url)
    held = [line for line in found.lines if line.startswith("held ")]
    assert len(held) == 21
    assert max(map(len, held[:20])) <= 80
    assert "and 980 more destinations with 1460 messages, in all 1000 with 1500" in held[-1]
    code, output, _ = await relmsg("outbox", "status", "--limit", "990")
    assert code == 0
    assert "and 10 more destinations with 10 messages" in output
    code, output, _ = await relmsg("outbox", "status", "--json")
    assert code == 0
    status = json.loads(output)
    assert (status["held_destinations"], status["held_messages"], len(status["held"])) == (1000, 1500, 20)


@pytest.fixture(scope="module")
def managed():
    """A broker with the management plugin."""
    with Services.obtain(management=True) as services:
        if services.management_url:
            yield services
            return
    with Services(management=True) as services:
        services.start()
        yield services


async def test_without_a_queue_all_error_queues_are_counted(managed, processes):
    """The fullest first; another queue, and the error queue of another virtual host, are not among them."""
    virtual_hosts = VirtualHosts(managed)
    here, there = virtual_hosts.take(), virtual_hosts.take()
    for url, queues in ((here, {"a.errors": 1, "b.errors": 3, "c.errors": 0, "plain": 2}), (there, {"d.errors": 1})):
        async with Broker(url) as broker:
            for name, count in queues.items():
                await broker.queue(name)
                for _ in range(count):
                    await broker.publish(b"", routing_key=name)
    urls = {"RELMSG_AMQP_URL": here, "RELMSG_MANAGEMENT_URL": managed.management_url}
    process = await processes.relmsg("errors", "list", "--json", **urls)
    assert await process.wait() == 0, process.stderr
    assert json.loads(process.stdout) == [
        {"queue": "b", "error_queue": "b.errors", "messages": 3},
        {"queue": "a", "error_queue": "a.errors", "messages": 1},
        {"queue": "c", "error_queue": "c.errors", "messages": 0},
    ]
    found = await seen("errors", "list", **urls)
    assert [line.split() for line in found.lines] == [
        ["error_queue", "messages"],
        *(["b.errors", "3"], ["a.errors", "1"], ["c.errors", "0"]),
    ]
    process = await processes.relmsg("errors", "list", "--type", "t", **urls)
    assert await process.wait() == 2
    assert "go with --queue" in process.stderr
    virtual_hosts.delete_all()


async def test_where_no_management_api_answers_the_operator_is_told_what_to_name(processes):
    """Without a management URL a broker that has none at its usual place is wrong use, in one line; a wrong URL is a
    service that is away."""
    process = await processes.relmsg("errors", "list")
    assert await process.wait() == 2
    assert "RELMSG_MANAGEMENT_URL" in process.stderr
    assert "--queue" in process.stderr
    assert process.stderr.count("\n") == 1
    process = await processes.relmsg("errors", "list", RELMSG_MANAGEMENT_URL="http://u:p@127.0.0.1:1")
    assert await process.wait() == 3
