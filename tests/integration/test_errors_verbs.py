"""`relmsg errors` as an operator meets it, on a real error queue; as a process, stopped at the worst moment too."""

from __future__ import annotations

import json
import signal
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest

from relmsg.broker import error_headers as names
from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.broker.error_entry import ErrorFilter
from relmsg.broker.error_queue import ErrorQueue
from relmsg.testing.eventually import eventually
from relmsg.topology import Queue, Topology

SOURCE, ERRORS = "billing.orders", "billing.orders.errors"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
async def connection(amqp_url):
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
        yield connection


@pytest.fixture
async def errors(connection):
    return await ErrorQueue.of(connection, SOURCE)


async def fail(broker, *ids, error="shop.errors.CardRefused", at=NOON, queue=ERRORS, body=b"{}", headers=None, **more):
    """Messages in the error queue as the consumer writes them."""
    for message_id in ids:
        diagnosis = {
            names.REASON: "retries spent",
            names.ERROR_TYPE: error,
            names.EXCEPTION_MESSAGE: "card refused\x1b[31m",
            names.EXCEPTION_STACKTRACE: "Traceback:\n    charge()\nCardRefused",
            names.ORIGINAL_EXCHANGE: "shop",
            names.ORIGINAL_ROUTING_KEY: "order.placed",
            names.ORIGINAL_QUEUE: SOURCE,
            names.ATTEMPTS: 3,
            names.FAILED_AT: at.isoformat(timespec="milliseconds"),
            names.CONSUMER: "billing",
        }
        properties = {"message_type": "order.placed", "app_id": "orders", "content_type": "application/json"} | more
        await broker.publish(
            body, routing_key=queue, message_id=message_id, headers=diagnosis | (headers or {}), **properties
        )


async def ran(processes, *arguments, **variables):
    """The exit code, stdout and stderr of a command."""
    process = await processes.relmsg("errors", *arguments, **variables)
    code = await process.wait(within=60)
    return code, process.stdout, process.stderr


def ids(messages):
    return [each.message_id for each in messages]


async def test_looking_thirty_times_keeps_every_message_in_its_order(broker, errors):
    """However often and however far one looks, the messages stay, oldest first; on a quorum queue this is an art."""
    expected = [f"m{number}" for number in range(60)]
    await fail(broker, *expected)
    for look in range(30):
        limit = (None, 5, 1, 47)[look % 4]
        assert ids(await errors.browse(ErrorFilter(), limit=limit)) == expected[:limit]
    assert (await errors.browse(ErrorFilter()))[0].returned == 30
    assert ids(await broker.drain(ERRORS)) == expected


async def test_what_stays_after_some_were_requeued_keeps_its_order(broker, errors):
    """Taking some messages out leaves the others in their order, and what was taken arrives in its own."""
    await fail(broker, "a", "b", "c", "d", "e", "f", error="x.Mine")
    await fail(broker, *[f"m{number}" for number in range(50)])
    await errors.browse(ErrorFilter(), limit=2)
    assert await errors.requeue(ErrorFilter(exception="Mine"), limit=4) == []
    assert ids(await errors.browse(ErrorFilter())) == ["e", "f", *[f"m{number}" for number in range(50)]]
    assert ids(await broker.drain(SOURCE)) == ["a", "b", "c", "d"]


async def test_a_requeued_message_is_as_it_was_before_it_failed(broker, errors):
    """Id, type, source, times and own headers are kept; the diagnosis, and what would route copies, are gone."""
    await broker.queue("elsewhere")
    own = {
        "tenant": "a",
        "traceparent": "00-1",
        "CC": ["elsewhere"],
        "x-death": [{"queue": "q"}],
        "x-delivery-count": 3,
    }
    await fail(broker, "m1", headers=own, correlation_id="c", reply_to="r", timestamp=NOON, delivery_mode=1)
    await broker.drain("elsewhere")
    assert await errors.requeue(ErrorFilter()) == []
    (again,) = await broker.drain(SOURCE)
    assert own_headers(again) == {"tenant": "a", "traceparent": "00-1"}
    kept = again.properties
    assert (kept.message_id, kept.message_type, kept.app_id) == ("m1", "order.placed", "orders")
    assert (kept.correlation_id, kept.reply_to, kept.timestamp, kept.delivery_mode) == ("c", "r", NOON, 2)
    assert await broker.drain("elsewhere") == []
    assert await broker.drain(ERRORS) == []


async def test_a_message_dead_lettered_by_the_broker_is_explained_and_requeued(broker, connection, errors):
    """What no consumer has diagnosed shows the broker's reason and goes back to the queue it was rejected in."""
    await broker.publish(b"\xff", routing_key=SOURCE, message_id="m1")
    async with broker.channel() as channel:
        got = await channel.basic_get(SOURCE)
        await channel.basic_reject(got.delivery_tag, requeue=False)
    (entry,) = await eventually(lambda: one(errors))
    assert entry.reason == "dead-lettered by the broker: rejected"
    assert (entry.original_queue, entry.original_exchange, entry.original_routing_key) == (SOURCE, "", SOURCE)
    assert entry.failed_at is not None
    assert await errors.requeue(ErrorFilter(since=datetime.now(UTC) - timedelta(hours=1))) == []
    (again,) = await broker.drain(SOURCE)
    assert own_headers(again) == {}


async def test_a_message_without_an_id_is_not_lost_when_its_queue_is_gone(broker, errors):
    """A return cannot be told without an id, so it gets one; then the message stays, with the reason."""
    await fail(broker, None)
    await broker.delete_queue(SOURCE)
    (stayed,) = await errors.requeue(ErrorFilter())
    assert "unroutable" in stayed.reason
    assert await broker.count(ERRORS) == 1


async def test_messages_that_fail_again_are_not_chased(broker, errors, amqp_url):
    """A requeue ends after what was there at its start, even if each message comes straight back."""
    await fail(broker, *[f"m{number}" for number in range(10)])
    moved = []
    assert await errors.requeue(ErrorFilter(), rate=40, moved=lambda entry: moved.append(entry.message_id)) == []
    await fail(broker, *moved)
    assert len(moved) == 10
    assert await broker.count(ERRORS) == 10


async def test_a_forged_origin_leads_nowhere(broker, errors):
    """A message whose headers name another queue stays, unless the operator allows it."""
    await broker.queue("payroll")
    await fail(broker, "m1", headers={names.ORIGINAL_QUEUE: "payroll"})
    (stayed,) = await errors.requeue(ErrorFilter())
    assert "--any-origin" in stayed.reason
    assert await broker.count("payroll") == 0
    assert await errors.requeue(ErrorFilter(), any_origin=True) == []
    assert ids(await broker.drain("payroll")) == ["m1"]


async def test_filters_mean_what_they_say(broker, errors):
    """Exception by full or short name, type, time and id; an entry without a time is in no span of time."""
    await fail(broker, "old", at=NOON - timedelta(hours=2))
    await fail(broker, "new", error="builtins.ValueError", message_type="order.paid")
    await broker.publish(b"", routing_key=ERRORS, message_id="bare")

    async def found(**wanted):
        return ids(await errors.browse(ErrorFilter(**wanted)))

    assert await found() == ["old", "new", "bare"]
    assert await found(exception="CardRefused") == await found(exception="shop.errors.CardRefused") == ["old"]
    assert await found(exception="Refused") == []
    assert await found(type="order.paid") == ["new"]
    assert await found(since=NOON) == ["new"]
    assert await found(until=NOON - timedelta(hours=1)) == ["old"]
    assert await found(message_id="bare") == ["bare"]


async def test_list_and_show_tell_all_and_change_nothing(relmsg, broker, connection):
    """A table or JSON for many, everything for one; control characters of a message never reach the terminal."""
    await fail(broker, "m1", body=b'{"id": 7}', headers={"tenant": "a"})
    await fail(broker, "m2", body=b"\xff\xfe", content_type="x/y")
    code, output, problems = await relmsg("errors", "list", "--queue", SOURCE)
    assert (code, problems) == (0, "")
    assert output.splitlines()[0].split() == [
        *("message_id", "type", "exception", "failed_at", "reason", "exception_message")
    ]
    assert "shop.errors.CardRefused" in output
    assert "\x1b" not in output
    code, output, _ = await relmsg("errors", "list", "--queue", ERRORS, "--exception", "CardRefused", "--json")
    assert [(each["message_id"], each["attempts"], each["size"]) for each in json.loads(output)] == [
        ("m1", 3, 9),
        ("m2", 3, 2),
    ]
    code, output, _ = await relmsg("errors", "show", "m1", "--queue", SOURCE)
    assert code == 0
    assert "\n    charge()\n" in output.replace("      ", "    ")
    for told in ("card refused", "tenant: a", '"id": 7', "order.placed", "2026-01-31T12:00:00.000+00:00"):
        assert told in output
    code, output, _ = await relmsg("errors", "show", "m2", "--queue", SOURCE, "--json")
    (row,) = json.loads(output)
    assert (row["body_encoding"], row["body"]) == ("base64", b64encode(b"\xff\xfe").decode())
    assert ids(await broker.drain(ERRORS)) == ["m1", "m2"]


async def test_requeue_first_tells_how_many(relmsg, broker, connection):
    """A dry run counts and stops; without a terminal nothing moves unasked; with --yes the matching ones move."""
    await fail(broker, "m1", "m2", "m3")
    await fail(broker, "other", error="builtins.KeyError")
    chosen = ("requeue", "--queue", SOURCE, "--exception", "CardRefused")
    assert await relmsg("errors", *chosen, "--dry-run") == (0, f"3 messages match in {ERRORS}\n", "")
    code, output, problems = await relmsg("errors", *chosen)
    assert (code, output) == (2, "")
    assert "give --yes, or --dry-run" in problems
    code, output, _ = await relmsg("errors", *chosen, "--limit", "2", "--yes")
    assert (code, output) == (0, f"3 messages match in {ERRORS}\nrequeued 2 of 3\n")
    code, output, _ = await relmsg("errors", *chosen, "--yes", "--json")
    assert (code, json.loads(output)) == (0, [{"queue": ERRORS, "matching": 1, "requeued": 1, "stayed": []}])
    assert ids(await broker.drain(SOURCE)) == ["m1", "m2", "m3"]
    assert ids(await broker.drain(ERRORS)) == ["other"]


async def test_purge_removes_only_what_is_meant(relmsg, broker, connection):
    """What matches is gone for good, the rest stays."""
    await fail(broker, "m1", "m2")
    await fail(broker, "other", error="builtins.KeyError")
    code, output, _ = await relmsg("errors", "purge", "--queue", SOURCE, "--exception", "CardRefused", "--yes")
    assert (code, output) == (0, f"2 messages match in {ERRORS}\nremoved 2 of 2\n")
    assert ids(await broker.drain(ERRORS)) == ["other"]
    assert await broker.drain(SOURCE) == []


async def test_exit_codes_tell_a_script(relmsg, processes, broker, connection):
    """What cannot be moved or found is 1, wrong use 2, a broker away 3: each with one line on stderr at most."""
    await fail(broker, "m1")
    await broker.queue("lonely")
    for expected, told, *arguments in [
        (1, "there is no message nobody in the error queue", "show", "nobody", "--queue", SOURCE),
        (2, "there is no queue 'nowhere'", "list", "--queue", "nowhere"),
        (2, "queue 'lonely' has no error queue", "purge", "--queue", "lonely", "--yes"),
        (2, "neither like", "list", "--queue", SOURCE, "--since", "yesterday"),
    ]:
        code, output, problems = await relmsg("errors", *arguments)
        assert (code, output) == (expected, ""), problems
        assert told in problems
        assert problems.count("\n") == 1
    closed = "amqp://guest:ge-heim@127.0.0.1:1/"
    code, output, problems = await ran(processes, "list", "--queue", SOURCE, RELMSG_AMQP_URL=closed)
    assert (code, output, problems.count("\n")) == (3, "", 1)
    await broker.delete_queue(SOURCE)
    code, output, _ = await ran(processes, "requeue", "--queue", SOURCE, "--yes")
    assert code == 1
    assert "stayed: m1: returned as unroutable" in output
    assert ids(await broker.drain(ERRORS)) == ["m1"]


async def test_a_queue_that_looking_would_harm_is_told(relmsg, broker):
    """Where looking can drop messages, because the queue's limit is small, the operator is told."""
    await broker.queue("q.errors", arguments={"x-queue-type": "quorum", "x-delivery-limit": 5})
    code, _, problems = await relmsg("errors", "list", "--queue", "q")
    assert code == 0
    assert "drops a message after 5 returns" in problems


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
async def test_a_requeue_stopped_half_way_loses_nothing(processes, broker, connection, signum):
    """Every message is in one of the two queues, at most once in each, and at most one batch in both."""
    expected = {f"m{number}" for number in range(60)}
    await fail(broker, *sorted(expected))
    process = await processes.relmsg("errors", "requeue", "--queue", SOURCE, "--rate", "20", "--yes")

    async def some_moved():
        assert await broker.count(SOURCE) >= 12

    await eventually(some_moved, within=30)
    process.send(signum)
    code = await process.wait()
    assert code == (-signal.SIGKILL if signum is signal.SIGKILL else 130)
    if signum is signal.SIGINT:
        assert "requeued" in process.stdout

    async def all_are_back():
        assert await broker.count(SOURCE) + await broker.count(ERRORS) >= len(expected)

    await eventually(all_are_back)
    moved, left = ids(await broker.drain(SOURCE)), ids(await broker.drain(ERRORS))
    assert set(moved) | set(left) == expected
    assert len(moved) == len(set(moved))
    assert len(left) == len(set(left))
    assert 12 <= len(moved) < 60
    assert len(set(moved) & set(left)) <= 5


def own_headers(received):
    """The headers without the one that a quorum queue adds to each delivery."""
    return {name: value for name, value in received.headers.items() if (name, value) != ("x-delivery-count", 0)}


async def one(errors):
    found = await errors.browse(ErrorFilter())
    assert found
    return found


async def test_what_was_cut_is_not_requeued_in_silence(broker, errors):
    """F5: a message whose header was dropped when it failed stays, with the reason, until that is allowed."""
    await fail(broker, "whole", priority=7)
    await fail(broker, "cut", headers={names.SANITISED: "huge (dropped)"})
    (stayed,) = await errors.requeue(ErrorFilter())
    assert stayed.entry.message_id == "cut"
    assert "huge (dropped)" in stayed.reason
    (whole,) = await broker.drain(SOURCE)
    assert whole.properties.priority == 7
    assert await errors.requeue(ErrorFilter(), lossy=True) == []
    assert ids(await broker.drain(SOURCE)) == ["cut"]


async def test_a_requeued_message_has_the_time_to_live_it_had(broker, errors):
    """F5: the diagnosis keeps it; a forged value that the broker would close the channel over is not sent."""
    await fail(broker, "minute", headers={names.ORIGINAL_EXPIRATION: "60000"})
    await fail(broker, "forged", headers={names.ORIGINAL_EXPIRATION: "soon"})
    await fail(broker, "gone", headers={names.ORIGINAL_EXPIRATION: "0"})
    await fail(broker, "none")
    assert await errors.requeue(ErrorFilter()) == []
    again = {each.message_id: each.properties.expiration for each in await broker.drain(SOURCE)}
    assert again == {"minute": "60000", "forged": None, "gone": None, "none": None}


async def test_a_copy_whose_body_was_cut_stays_unless_that_is_allowed(broker, errors):
    """F5: the size that the diagnosis tells is held against the body that is there."""
    await fail(broker, "cut", headers={names.BODY_SIZE: 100_000})
    await fail(broker, "whole", headers={names.BODY_SIZE: 2})
    (stayed,) = await errors.requeue(ErrorFilter())
    assert (stayed.entry.message_id, "100000 bytes" in stayed.reason) == ("cut", True)
    assert await errors.requeue(ErrorFilter(), lossy=True) == []
    assert ids(await broker.drain(SOURCE)) == ["whole", "cut"]


async def test_requeue_says_that_a_user_id_is_not_sent_again(broker, errors, relmsg):
    """F5: RabbitMQ lets nobody send another login's user_id."""
    await fail(broker, "ada's", headers={names.ORIGINAL_USER_ID: "ada"})
    await fail(broker, "nobody's")
    code, out, err = await relmsg("errors", "requeue", "--queue", SOURCE, "--yes")
    assert (code, "requeued 2 of 2" in out) == (0, True)
    assert "1 of them had a user_id" in " ".join(err.split())
