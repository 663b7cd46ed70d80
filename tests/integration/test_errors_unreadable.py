"""`relmsg errors` where a message ends the connection of whoever reads it."""

from __future__ import annotations

import json

import pytest

from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.broker.error_entry import ErrorFilter
from relmsg.broker.error_queue import ErrorQueue
from relmsg.errors import UnreadableMessages
from relmsg.topology import Queue, Topology
from tests.integration.test_channel_crashed_by_message import POISON, Crashing
from tests.support.proxy import Proxy

SOURCE, ERRORS = "billing.orders", "billing.orders.errors"
MANY = [f"m{number}" for number in range(40)]


@pytest.fixture
async def crashing_url(amqp_url):
    """The broker, through a proxy that ends each connection over which the message at fault is to come."""
    async with Proxy.before(amqp_url) as proxy:
        proxy.to_client = Crashing()
        yield proxy.through(amqp_url)


@pytest.fixture
async def errors(crashing_url):
    """The error queue as a program sees it; what it cannot read is noted in ``told``."""
    async with Connection([crashing_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
        queue = await ErrorQueue.of(connection, SOURCE, unreadable=lambda each: queue.told.append(each))
        queue.told = []
        yield queue


async def fail(broker, *ids, queue=ERRORS):
    """Messages in the error queue; those whose id begins with `bad` end the connection."""
    for message_id in ids:
        body = POISON if message_id.startswith("bad") else b"{}"
        await broker.publish(body, routing_key=queue, message_id=message_id, message_type="t")


def ids(messages):
    return [each.message_id for each in messages]


@pytest.mark.parametrize("bad", [[0], [20], [40], [3, 4], [0, 17, 42]])
async def test_all_others_are_shown_and_stay_in_their_order(broker, errors, bad):
    """Wherever the messages at fault stand, all others are shown, oldest first; nothing is lost or moved by looking."""
    wanted = list(MANY)
    for place in bad:
        wanted.insert(place, f"bad{place}")
    await fail(broker, *wanted)
    for limit in (None, 5, None):
        errors.told.clear()
        assert ids(await errors.browse(ErrorFilter(), limit=limit)) == MANY[:limit]
        (told,) = errors.told
        assert told.places == tuple(place + 1 for place in bad)
        assert told.behind == 0
    assert await errors.count(ErrorFilter()) == len(MANY)
    assert ids(await broker.drain(ERRORS)) == wanted


async def test_all_others_are_requeued(broker, errors):
    """A requeue passes what it cannot read and moves the rest once each; a limit and filters hold."""
    await fail(broker, "a", "b", "bad1", "c", "bad2", "d", "e")
    moved = []
    assert await errors.requeue(ErrorFilter(message_id="c"), moved=lambda each: moved.append(each.message_id)) == []
    assert await errors.requeue(ErrorFilter(), limit=2, moved=lambda each: moved.append(each.message_id)) == []
    assert moved == ["c", "a", "b"]
    assert ids(await errors.browse(ErrorFilter())) == ["d", "e"]
    assert await errors.requeue(ErrorFilter()) == []
    assert ids(await broker.drain(SOURCE)) == ["c", "a", "b", "d", "e"]
    assert ids(await broker.drain(ERRORS)) == ["bad1", "bad2"]


async def test_a_purge_removes_all_others(broker, errors):
    """What ends the connection stays in the queue, as nobody has seen what it is."""
    await fail(broker, "a", "bad1", "b", "c")
    await errors.purge(ErrorFilter(message_id="b"))
    assert ids(await errors.browse(ErrorFilter())) == ["a", "c"]
    await errors.purge(ErrorFilter())
    assert ids(await broker.drain(ERRORS)) == ["bad1"]


async def test_who_does_not_ask_is_told_by_an_error(broker, crashing_url):
    """A program that gives no callback gets an error in the end, so that nothing is missed in silence."""
    async with Connection([crashing_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
        await fail(broker, "bad1", "a")
        errors = await ErrorQueue.of(connection, SOURCE)
        with pytest.raises(UnreadableMessages, match=r"message 1 of 2 in .* cannot be read"):
            await errors.requeue(ErrorFilter())
    assert ids(await broker.drain(SOURCE)) == ["a"]


async def test_in_a_classic_queue_those_before_it_are_shown(broker, crashing_url):
    """What stands behind the message at fault cannot be reached there; that is told, and what is before it is shown."""
    await broker.queue("old.errors")
    await fail(broker, *MANY, "bad", "behind1", "behind2", queue="old.errors")
    told = []
    async with Connection([crashing_url]) as connection:
        errors = await ErrorQueue.of(connection, "old", unreadable=told.append)
        assert ids(await errors.browse(ErrorFilter())) == MANY
    assert (told[0].places, told[0].behind) == ((41,), 2)
    assert "the 2 behind cannot be reached" in str(told[0])
    assert ids(await broker.drain("old.errors")) == [*MANY, "bad", "behind1", "behind2"]


async def test_a_lost_connection_without_such_a_message_is_survived(broker, amqp_url):
    """A broker or network that fails while messages are read costs the reader nothing but time."""
    async with Proxy.before(amqp_url) as proxy, Connection([proxy.through(amqp_url)]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
        await fail(broker, *MANY)
        told = []
        errors = await ErrorQueue.of(connection, SOURCE, unreadable=told.append)
        proxy.to_client.cut_after(4000)
        assert ids(await errors.browse(ErrorFilter())) == MANY
        assert told == []
    assert ids(await broker.drain(ERRORS)) == MANY


async def test_the_command_says_which_and_shows_the_others(processes, broker, errors, crashing_url):
    """List, show and requeue do what they can, say in one line which message cannot be read, and exit with code 1."""
    await fail(broker, "a", "bad1", "b")
    line = (
        f"relmsg: message 2 of 3 in {ERRORS} cannot be read: the connection is lost when it is delivered; "
        "read with an AMQP 1.0 client, which can take it out\n"
    )

    async def ran(*arguments):
        process = await processes.relmsg("errors", *arguments, "--queue", SOURCE, RELMSG_AMQP_URL=crashing_url)
        return await process.wait(within=60), process.stdout, process.stderr

    code, output, problems = await ran("list", "--json")
    assert (code, ids_of(output), problems) == (1, ["a", "b"], line)
    code, output, problems = await ran("show", "b", "--json")
    assert (code, ids_of(output), problems) == (1, ["b"], line)
    code, output, problems = await ran("requeue", "--yes", "--json")
    assert (code, json.loads(output)[0]["requeued"]) == (1, 2)
    assert problems.endswith(line.replace("2 of 3", "2 of 3"))
    assert problems.count("\n") == 2  # both matched first
    assert ids(await broker.drain(SOURCE)) == ["a", "b"]


def ids_of(output):
    return [row["message_id"] for row in json.loads(output)]
