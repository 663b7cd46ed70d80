"""The coordinator at the end of its queue: what plain AMQP messages make it do, on a real broker and database."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import aiormq
import pytest
from sqlalchemy import select, text

from relmsg.errors import AccessRefused, BrokerAway, DatabaseAway, SchemaError
from relmsg.half.coordinator import Coordinator
from relmsg.half.state import HalfState
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.halves import HALF, becomes, coordinating, counted, half_row, outbox_rows
from tests.support.proxy import Proxy

QUEUE, ERRORS = "relmsg.half", "relmsg.half.errors"


async def say(broker, verb, half_id=None, *, group="shop", reply_to=None, user_id=None, **headers):
    """A message of the protocol as any AMQP client would send it; its own id."""
    said = {"relmsg-half": verb, "relmsg-half-id": str(half_id), "relmsg-half-group": group}
    said |= {f"relmsg-half-{name.replace('_', '-')}": value for name, value in headers.items()}
    message_id = str(uuid4())
    await broker.publish(
        b"",
        routing_key=QUEUE,
        headers={name: value for name, value in said.items() if value is not None},
        message_id=message_id,
        reply_to=reply_to,
        correlation_id=message_id,
        user_id=user_id,
    )
    return message_id


async def prepare(broker, half_id=None, *, group="shop", body=b'{"n":1}', user_id=None, **headers):
    """A prepare of a message to the queue ``q``; the half id."""
    half_id = half_id or uuid4()
    said = {"tenant": "a", "relmsg-half": "prepare", "relmsg-half-group": group, "relmsg-half-exchange": ""}
    said |= {"relmsg-half-routing-key": "q"}
    said |= {f"relmsg-half-{name.replace('_', '-')}": value for name, value in headers.items()}
    await broker.publish(
        body,
        routing_key=QUEUE,
        headers={name: value for name, value in said.items() if value is not None},
        message_id=str(half_id),
        message_type="t",
        user_id=user_id,
    )
    return half_id


@asynccontextmanager
async def replies(broker):
    """The name of a private queue, and what came into it."""
    came = []

    async def note(delivered):
        came.append(delivered.header.properties)

    async with broker.channel() as channel:
        queue = (await channel.queue_declare(exclusive=True, auto_delete=True)).queue
        await channel.basic_consume(queue, note, no_ack=True)
        yield queue, came


async def answered(came, correlation_id):
    """The headers of the answer to this decision."""

    async def check():
        found = [each for each in came if each.correlation_id == correlation_id]
        assert len(found) == 1
        return {name.removeprefix("relmsg-half"): value for name, value in found[0].headers.items()}

    return await eventually(check)


def value(coordinator, name, **labels):
    return coordinator.metrics.registry.get_sample_value(name, labels)


async def test_a_commit_is_carried_out_and_answered(broker, engine, database_url, amqp_url):
    """The message is in the outbox, the producer is told COMMITTED, now and again, and it is all counted."""
    async with replies(broker) as (queue, came), coordinating(database_url, amqp_url) as coordinator:
        half_id = await prepare(broker)
        await becomes(engine, half_id, HalfState.PREPARED)
        assert await outbox_rows(engine) == []
        said = await say(broker, "commit", half_id, reply_to=queue, is_prepared=True)
        told = await answered(came, said)
        assert told == {"": "state", "-id": str(half_id), "-state": "COMMITTED"}
        again = await say(broker, "rollback", half_id, reply_to=queue)
        assert (await answered(came, again))["-state"] == "COMMITTED"
        (row,) = await outbox_rows(engine)
        assert (row.message_id, row.type, row.routing_key, row.body) == (half_id, "t", "q", b'{"n":1}')
        assert row.headers == {"tenant": "a"}
        assert value(coordinator, "relmsg_half_prepared_total") == 1
        assert value(coordinator, "relmsg_half_outcomes_total", outcome="committed") == 1
        assert value(coordinator, "relmsg_half_outcomes_total", outcome="rolled_back") == 0
        assert coordinator.ready() is None
        assert coordinator.live() is None
    assert await broker.count(QUEUE) == 0
    assert await broker.count(ERRORS) == 0


async def test_the_relay_is_woken_by_a_commit(broker, engine, database_url, amqp_url):
    """Once for each message that comes into the outbox, also where the decision had overtaken its prepare."""
    woken = []
    settings = Settings(database_url=database_url, amqp_url=amqp_url, probes="")
    coordinator, stop = Coordinator(settings, committed=lambda: woken.append(1)), asyncio.Event()
    running = asyncio.create_task(coordinator.run(stop))
    await coordinator.started.wait()
    usual, early, dropped = await prepare(broker), uuid4(), await prepare(broker)
    await say(broker, "commit", usual)
    await becomes(engine, usual, HalfState.COMMITTED)
    await say(broker, "commit", usual)
    await say(broker, "rollback", dropped)
    await say(broker, "commit", early, is_prepared=True)
    await becomes(engine, early, HalfState.COMMITTED)
    await becomes(engine, dropped, HalfState.ROLLED_BACK)
    await prepare(broker, early)

    async def both_sent():
        assert {row.message_id for row in await outbox_rows(engine)} == {usual, early}

    await eventually(both_sent)
    stop.set()
    await running
    assert len(woken) >= 2


async def test_a_refused_decision_is_answered_with_its_reason(broker, engine, database_url, amqp_url, caplog):
    """An unknown id, another group, another login: named to whoever asked, logged, counted, and nothing changes."""
    login = urlsplit(amqp_url).username
    async with replies(broker) as (queue, came), coordinating(database_url, amqp_url) as coordinator:
        half_id = await prepare(broker, user_id=login)
        await becomes(engine, half_id, HalfState.PREPARED)
        before = await half_row(engine, half_id)
        unknown = await say(broker, "commit", uuid4(), reply_to=queue)
        foreign = await say(broker, "commit", half_id, group="bank", reply_to=queue, user_id=login)
        nameless = await say(broker, "rollback", half_id, reply_to=queue)
        told = [await answered(came, each) for each in (unknown, foreign, nameless)]
        assert [(each["-state"], each["-reason"]) for each in told] == [
            ("UNKNOWN", "unknown id"),
            ("PREPARED", "another group"),
            ("PREPARED", "another user"),
        ]
        assert await half_row(engine, half_id) == before
        for reason in ("unknown_id", "another_group", "another_user"):
            assert value(coordinator, "relmsg_half_refused_total", reason=reason) == 1
    assert f"half message {half_id}: a decision of group 'bank'" in caplog.text


async def test_only_private_queues_are_answered_to(broker, engine, database_url, amqp_url):
    """Nobody can have a coordinator write into a queue of somebody else's choice."""
    await broker.queue("orders")
    async with coordinating(database_url, amqp_url):
        half_id = await prepare(broker)
        await say(broker, "commit", half_id, reply_to="orders")
        await becomes(engine, half_id, HalfState.COMMITTED)
        await say(broker, "rollback", other := await prepare(broker), reply_to="amq.gen-that-is-gone")
        await becomes(engine, other, HalfState.ROLLED_BACK)
    assert await broker.count("orders") == 0
    assert await broker.count(QUEUE) == 0


MALFORMED = {
    "no verb": ({"relmsg-half": None}, "no verb that a coordinator knows"),
    "unknown verb": ({"relmsg-half": "abort"}, "no verb that a coordinator knows"),
    "a verb for members": ({"relmsg-half": "check"}, "no verb that a coordinator knows"),
    "no group": ({"relmsg-half-group": None}, "give the name of your service"),
    "empty group": ({"relmsg-half-group": ""}, "give the name of your service"),
    "over-long group": ({"relmsg-half-group": "g" * 129}, "takes 129 bytes"),
    "group of another alphabet": ({"relmsg-half-group": "läden"}, "ASCII letters"),
    "no id": ({"relmsg-half-id": None}, "is not a UUID"),
    "no UUID": ({"relmsg-half-id": "7"}, "is not a UUID"),
    "no number of a check": ({"relmsg-half": "received"}, "relmsg-half-check is missing"),
    "check 0": ({"relmsg-half": "received", "relmsg-half-check": 0}, "is a whole number from 1"),
    "check of a text": ({"relmsg-half": "answer", "relmsg-half-check": "1"}, "is a whole number from 1"),
    "no answer": ({"relmsg-half": "answer", "relmsg-half-check": 1}, "neither COMMIT, ROLLBACK nor UNKNOWN"),
    "an answer that is none": (
        {"relmsg-half": "answer", "relmsg-half-check": 1, "relmsg-half-resolution": "commit"},
        "neither COMMIT, ROLLBACK nor UNKNOWN",
    ),
}


async def test_what_is_none_of_the_protocol_goes_to_the_error_queue(broker, engine, database_url, amqp_url):
    """Each with its diagnosis, confirmed there before it leaves the queue; the half message stays as it is, and what
    follows is carried out."""
    async with coordinating(database_url, amqp_url) as coordinator:
        half_id = await prepare(broker)
        row = await becomes(engine, half_id, HalfState.PREPARED)
        good = {"relmsg-half": "commit", "relmsg-half-id": str(half_id), "relmsg-half-group": "shop"}
        for name, (change, _) in MALFORMED.items():
            headers = {key: said for key, said in (good | change).items() if said is not None}
            await broker.publish(b"x", routing_key=QUEUE, headers=headers, message_id=name, reply_to="r")

        async def all_there():
            assert await broker.count(ERRORS) == len(MALFORMED)

        await eventually(all_there)
        assert value(coordinator, "relmsg_half_malformed_total") == len(MALFORMED)
        assert await half_row(engine, half_id) == row
        await say(broker, "commit", half_id)
        await becomes(engine, half_id, HalfState.COMMITTED)
    found = {each.message_id: each.headers for each in await broker.drain(ERRORS)}
    assert set(found) == set(MALFORMED)
    for name, (_, told) in MALFORMED.items():
        assert told in found[name]["x-exception-message"], name
        assert found[name]["relmsg-error-reason"] == "malformed_half"
        assert found[name]["relmsg-original-queue"] == QUEUE
    assert await broker.count(QUEUE) == 0


PREPARES = {
    "no UUID": ({"message_id": "7"}, {}, "is not a UUID"),
    "no exchange": ({}, {"relmsg-half-exchange": None}, "relmsg-half-exchange is missing"),
    "an exchange that is none": ({}, {"relmsg-half-exchange": "e" * 256}, "exchange takes 256 bytes"),
    "no routing key": ({}, {"relmsg-half-routing-key": 7}, "relmsg-half-routing-key is missing"),
    "check after nothing": ({}, {"relmsg-half-check-after": 0}, "relmsg-half-check-after is a whole number"),
    "check after ages": ({}, {"relmsg-half-check-after": 2**62}, "relmsg-half-check-after is a whole number"),
    "check every nothing": ({}, {"relmsg-half-check-every": -1}, "relmsg-half-check-every is a whole number"),
    "no checks": ({}, {"relmsg-half-max-checks": 0}, "relmsg-half-max-checks is a whole number"),
    "expired": ({}, {"relmsg-half-expires-in": 0}, "relmsg-half-expires-in is a whole number"),
    "a float": ({}, {"price": 1.5}, "price"),
    "over the cap": ({"body": b"x" * 1001}, {}, "takes 1001 bytes, at most 1000"),
}


async def test_a_message_that_could_never_be_sent_is_not_kept(broker, engine, database_url, amqp_url):
    """A prepare is held against every rule of the outbox: what breaks one waits in the error queue."""
    async with coordinating(database_url, amqp_url, max_body_bytes=1000):
        good = {"relmsg-half": "prepare", "relmsg-half-group": "shop"}
        good |= {"relmsg-half-exchange": "", "relmsg-half-routing-key": "q"}
        for name, (properties, change, _) in PREPARES.items():
            headers = {key: said for key, said in (good | change).items() if said is not None}
            given = {"body": b"x", "message_id": str(uuid4()), "headers": headers, "message_type": name} | properties
            await broker.publish(routing_key=QUEUE, **given)
        kept = await prepare(broker, body=b"x" * 1000)
        await becomes(engine, kept, HalfState.PREPARED)

        async def all_there():
            assert await broker.count(ERRORS) == len(PREPARES)

        await eventually(all_there)
    assert await counted(engine) == {"PREPARED": 1}
    found = {each.properties.message_type: each.headers["x-exception-message"] for each in await broker.drain(ERRORS)}
    assert {name for name, (*_, told) in PREPARES.items() if told not in found[name]} == set()


async def test_what_was_refused_can_be_requeued(broker, engine, database_url, amqp_url, processes):
    """Once the coordinator takes such bodies, the prepare that waits in the error queue is kept like any other."""
    login = urlsplit(amqp_url).username
    async with coordinating(database_url, amqp_url, max_body_bytes=10):
        half_id = await prepare(broker, body=b"x" * 11, user_id=login)

        async def refused():
            assert await broker.count(ERRORS) == 1

        await eventually(refused)
    requeue = await processes.relmsg("errors", "requeue", "--queue", QUEUE, "--yes")
    assert await requeue.wait() == 0, requeue.stderr
    async with coordinating(database_url, amqp_url):
        row = await becomes(engine, half_id, HalfState.PREPARED)
        assert (row.body, row.headers, row.user_id) == (b"x" * 11, {"tenant": "a"}, None)
        await say(broker, "commit", half_id, user_id=login)
        await becomes(engine, half_id, HalfState.COMMITTED)
    assert await broker.count(ERRORS) == 0


async def test_what_the_broker_adds_is_not_kept(broker, engine, database_url, amqp_url):
    """Headers that no message may have of its own are the broker's or ours; the others are the message's."""
    async with coordinating(database_url, amqp_url):
        half_id = uuid4()
        headers = {"relmsg-half": "prepare", "relmsg-half-group": "shop", "relmsg-half-exchange": "e"}
        headers |= {"relmsg-half-routing-key": "q", "relmsg-key": "7", "x-death": [{"count": 1}], "mine": "m"}
        headers |= {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        await broker.publish(b"", routing_key=QUEUE, headers=headers, message_id=str(half_id).upper())
        row = await becomes(engine, half_id, HalfState.PREPARED)
    assert row.headers == {"mine": "m", "traceparent": headers["traceparent"]}
    assert (row.ordering_key, row.type, row.exchange) == ("7", None, "e")


async def test_any_order_ends_right(broker, engine, database_url, amqp_url):
    """Three coordinators, and everything about 150 half messages comes twice and shuffled: each is decided once, as its
    producer said, and the outbox has each committed one once."""
    chance = random.Random(7)
    fates = {uuid4(): chance.choice(["commit", "rollback"]) for _ in range(150)}
    work = [lambda half_id=half_id: prepare(broker, half_id) for half_id in fates for _ in range(2)]
    work += [
        lambda half_id=half_id, verb=verb: say(broker, verb, half_id, is_prepared=True)
        for half_id, verb in fates.items()
        for _ in range(2)
    ]
    chance.shuffle(work)
    async with (
        coordinating(database_url, amqp_url),
        coordinating(database_url, amqp_url),
        coordinating(database_url, amqp_url),
    ):
        for start in range(0, len(work), 50):
            await asyncio.gather(*(each() for each in work[start : start + 50]))

        async def all_decided():
            states = await counted(engine)
            assert states.get("COMMITTED", 0) + states.get("ROLLED_BACK", 0) == len(fates)
            async with engine.connect() as connection:
                waiting = await connection.scalar(
                    text("SELECT count(*) FROM relmsg.half_message WHERE prepared_at IS NULL")
                )
            assert waiting == 0
            assert await broker.count(QUEUE) == 0

        await eventually(all_decided, within=40)
    assert await broker.count(QUEUE) == 0  # nothing was given back unacked
    committed = [half_id for half_id, verb in fates.items() if verb == "commit"]
    assert Counter(row.message_id for row in await outbox_rows(engine)) == Counter(committed)
    async with engine.connect() as connection:
        found = dict((await connection.execute(select(HALF.c.half_id, HALF.c.state))).all())
    assert found == {
        half_id: HalfState.COMMITTED if verb == "commit" else HalfState.ROLLED_BACK for half_id, verb in fates.items()
    }


async def test_a_database_that_goes_away_is_waited_for(broker, engine, database_url, amqp_url, caplog):
    """Nothing is acked or dropped meanwhile, probes tell it, and everything is done when it is back."""
    caplog.set_level(logging.INFO, logger="relmsg.outage")
    async with Proxy.before(database_url) as proxy:  # noqa: SIM117 - its URL is known inside
        async with coordinating(proxy.through(database_url), amqp_url) as coordinator:
            first = await prepare(broker)
            await becomes(engine, first, HalfState.PREPARED)
            await proxy.refuse()
            proxy.reset()
            halves = [await prepare(broker) for _ in range(20)]
            for half_id in (first, *halves):
                await say(broker, "commit", half_id, is_prepared=True)

            async def told():
                assert "PostgreSQL" in (coordinator.ready() or "")

            await eventually(told)
            assert await counted(engine) == {"PREPARED": 1}
            await proxy.accept()

            async def all_committed():
                assert await counted(engine) == {"COMMITTED": 21}
                assert len(await outbox_rows(engine)) == 21

            await eventually(all_committed, within=40)
            await eventually(lambda: _is_ready(coordinator), within=20)
    assert await broker.count(QUEUE) == 0
    assert await broker.count(ERRORS) == 0
    levels = [record.levelname for record in caplog.records if record.name == "relmsg.outage"]
    assert levels == ["WARNING", "INFO"]


def _is_ready(coordinator):
    assert coordinator.ready() is None


async def test_a_coordinator_that_is_stopped_while_the_database_is_away_gives_all_back(
    broker, engine, database_url, amqp_url
):
    """What it could not carry out is in the queue again, and the next coordinator does it."""
    async with Proxy.before(database_url) as proxy:  # noqa: SIM117 - the proxy outlives the coordinator
        async with coordinating(proxy.through(database_url), amqp_url) as coordinator:
            await proxy.refuse()
            proxy.reset()
            halves = [await prepare(broker) for _ in range(10)]

            async def told():
                assert coordinator.ready() is not None

            await eventually(told)
    assert await broker.count(QUEUE) == 10
    async with coordinating(database_url, amqp_url):
        for half_id in halves:
            await becomes(engine, half_id, HalfState.PREPARED)
    assert await broker.count(QUEUE) == 0


async def test_a_broker_that_cuts_the_connection_is_come_back_to(broker, engine, database_url, amqp_url):
    """What was delivered and not acked comes again, and is not done twice."""
    async with Proxy.before(amqp_url) as proxy, coordinating(database_url, proxy.through(amqp_url)) as coordinator:
        halves = []
        for _ in range(4):
            halves += [await prepare(broker) for _ in range(5)]
            for half_id in halves:
                await say(broker, "commit", half_id, is_prepared=True)
            proxy.reset()

        async def all_committed():
            assert await counted(engine) == {"COMMITTED": 20}
            assert await broker.count(QUEUE) == 0
            assert coordinator.ready() is None

        await eventually(all_committed, within=40)
    assert await broker.count(QUEUE) == 0
    assert Counter(row.message_id for row in await outbox_rows(engine)) == Counter(halves)


async def test_a_queue_that_was_deleted_is_made_again(broker, engine, database_url, amqp_url):
    """Until then a prepare comes back to its producer; nothing waits for nobody."""
    async with coordinating(database_url, amqp_url):
        await broker.delete_queue(QUEUE)

        async def prepared():
            try:
                return await prepare(broker)
            except aiormq.exceptions.DeliveryError:  # returned; or nacked, by a queue that is just being made
                raise AssertionError from None

        half_id = await eventually(prepared, within=20)
        await becomes(engine, half_id, HalfState.PREPARED)


async def test_the_error_queue_has_to_take_it_before_it_is_acked(broker, database_url, amqp_url):
    """While the error queue refuses, the delivery waits, and what follows is carried out."""
    await broker.exchange("relmsg.errors")
    await broker.queue(
        ERRORS,
        exchange="relmsg.errors",
        arguments={"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"},
    )

    async def fill():
        for _ in range(100):  # a quorum queue takes a few more than its length
            await broker.publish(b"", routing_key=ERRORS, message_id="full")

    with pytest.raises(aiormq.exceptions.DeliveryError):
        await fill()
    async with coordinating(database_url, amqp_url) as coordinator:
        await broker.publish(b"", routing_key=QUEUE, message_id="odd")

        async def tried():
            assert value(coordinator, "relmsg_half_malformed_total") == 0
            assert await broker.count(QUEUE) == 0  # it holds it unacked

        await eventually(tried)
        drained = await broker.drain(ERRORS, most=await broker.count(ERRORS))
        assert {each.message_id for each in drained} == {"full"}

        async def taken():
            assert [each.message_id for each in await broker.drain(ERRORS)] == ["odd"]

        await eventually(taken, within=30)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"database_url": "postgresql://nobody:secret@127.0.0.1:1/x"}, DatabaseAway),
        ({"amqp_url": "amqp://guest:secret@127.0.0.1:1/"}, BrokerAway),
        ({"schema": "nothing here"}, SchemaError),
    ],
)
async def test_a_start_that_cannot_succeed_says_why(database_url, amqp_url, change, error):
    """A service that is away, and tables that are missing, end the start by name."""
    settings = Settings(**{"database_url": database_url, "amqp_url": amqp_url, "probes": ""} | change)
    coordinator = Coordinator(settings)
    with pytest.raises(error):
        await coordinator.run(asyncio.Event())
    assert coordinator.ready() == "the coordinator is starting"


async def test_a_login_that_may_not_declare_is_told_what_to_do(services, database_url, amqp_url):
    """Permission for the queues, or a relay without its coordinator."""
    name, vhost = f"narrow-{uuid4().hex[:8]}", urlsplit(amqp_url).path.lstrip("/")
    services.rabbitmqctl("add_user", name, "secret")
    try:
        services.rabbitmqctl("set_permissions", "-p", vhost, name, "^$", ".*", ".*")
        host = urlsplit(amqp_url).netloc.rpartition("@")[2]
        settings = Settings(database_url=database_url, amqp_url=f"amqp://{name}:secret@{host}/{vhost}", probes="")
        with pytest.raises(AccessRefused, match="--no-coordinator"):
            await Coordinator(settings).run(asyncio.Event())
    finally:
        services.rabbitmqctl("delete_user", name)


async def test_where_the_queues_stand_it_needs_no_right_to_declare_them(
    services, broker, engine, database_url, amqp_url
):
    """A narrow login coordinates with what another one has declared."""
    async with coordinating(database_url, amqp_url):
        pass
    name, vhost = f"narrow-{uuid4().hex[:8]}", urlsplit(amqp_url).path.lstrip("/")
    services.rabbitmqctl("add_user", name, "secret")
    try:
        services.rabbitmqctl("set_permissions", "-p", vhost, name, "^$", "^amq\\.default$", "^relmsg\\.half$")
        host = urlsplit(amqp_url).netloc.rpartition("@")[2]
        async with coordinating(database_url, f"amqp://{name}:secret@{host}/{vhost}"):
            half_id = await prepare(broker)
            await say(broker, "commit", half_id)
            await becomes(engine, half_id, HalfState.COMMITTED)
    finally:
        services.rabbitmqctl("delete_user", name)


async def test_the_table_is_pruned_and_measured(broker, engine, database_url, amqp_url):
    """What ended long ago goes, what waits is told."""
    columns = "half_id, producer_group, prepared_at, state, decided_at, next_check_at"
    several = (
        f"INSERT INTO relmsg.half_message ({columns}) SELECT gen_random_uuid(), 'shop', now() - interval '1 day', "
    )
    async with engine.begin() as connection:
        ended = "'COMMITTED', now() - interval '1 day', NULL FROM generate_series(1, 2500)"
        still_open = "'PREPARED', NULL, now() + interval '1 day' FROM generate_series(1, 3)"
        await connection.execute(text(several + ended))
        await connection.execute(text(several + still_open))
    async with coordinating(database_url, amqp_url, half_retention=3600) as coordinator:

        async def pruned():
            assert await counted(engine) == {"PREPARED": 3}

        await eventually(pruned)

        async def told():
            assert value(coordinator, "relmsg_half_open") == 3
            assert 86_400 <= value(coordinator, "relmsg_half_oldest_seconds") < 90_000

        await eventually(told)


async def test_the_relay_process_coordinates(broker, engine, processes):
    """`relmsg relay` takes prepares, carries out commits, and sends at once what is committed."""
    await broker.queue("q")
    relay = await processes.relmsg("relay", RELMSG_PROBES="127.0.0.1:0", RELMSG_POLL_MAX="30", RELMSG_POLL_MIN="30")
    await relay.line("coordinating the half messages")
    port = int((await relay.line(r"relaying schema relmsg as \S+, probes on port (\d+)"))[1])
    half_id = await prepare(broker)
    await say(broker, "commit", half_id)

    async def arrived():
        assert [each.message_id for each in await broker.drain("q")] == [str(half_id)]

    await eventually(arrived, within=15)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    assert re.search(r"(?m)^relmsg_half_prepared_total 1\.0$", page)
    assert re.search(r"(?m)^relmsg_relay_slots 64\.0$", page)
    assert await relay.terminate() == 0


async def test_a_relay_without_a_coordinator_leaves_half_messages_alone(broker, processes):
    """With --no-coordinator no queue is declared: a prepare comes back to its producer."""
    relay = await processes.relmsg("relay", "--no-coordinator", RELMSG_PROBES="")
    await relay.line("relaying schema relmsg")
    assert not await broker.exists(QUEUE)
    assert await relay.terminate() == 0
    assert "coordinating" not in relay.stderr
    named = await processes.relmsg("relay", RELMSG_PROBES="", RELMSG_COORDINATOR="off")
    await named.line("relaying schema relmsg")
    assert await named.terminate() == 0
    assert not await broker.exists(QUEUE)


async def test_a_coordinator_that_cannot_start_ends_the_relay(services, processes, amqp_url):
    """The process says what is missing and ends with 2; a relay that half works would go unnoticed."""
    name, vhost = f"narrow-{uuid4().hex[:8]}", urlsplit(amqp_url).path.lstrip("/")
    services.rabbitmqctl("add_user", name, "secret")
    try:
        services.rabbitmqctl("set_permissions", "-p", vhost, name, "^$", ".*", ".*")
        host = urlsplit(amqp_url).netloc.rpartition("@")[2]
        url = f"amqp://{name}:secret@{host}/{vhost}"
        relay = await processes.relmsg("relay", RELMSG_PROBES="", RELMSG_AMQP_URL=url)
        assert await relay.wait() == 2
        assert "--no-coordinator" in relay.stderr
        assert "Traceback" not in relay.stderr
    finally:
        services.rabbitmqctl("delete_user", name)
