"""`relmsg outbox redirect`, `park` and `drop`, and the relay that meets what they did."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from sqlalchemy import text

from relmsg import Message, Outbox
from relmsg.outbox import changes
from relmsg.outbox.backlog import Backlog
from relmsg.outbox.changes import Chosen
from relmsg.testing import eventually
from tests.support.relaying import emptied, relaying, waiting

OUTBOX = Outbox("orders")


class Told(NamedTuple):
    stdout: str
    stderr: str


async def commit(sessions, *messages):
    async with sessions() as session, session.begin():
        await OUTBOX.publish_many(session, messages)


def to(key, body="x", **given):
    return Message(**{"type": "t", "body": body, "routing_key": key, **given})


async def rows(engine, columns="routing_key, parked_at IS NOT NULL, last_error"):
    async with engine.connect() as connection:
        found = await connection.execute(text(f"SELECT {columns} FROM relmsg.outbox_message ORDER BY id"))
        return [tuple(each) for each in found]


async def run(relmsg, *arguments, code=0):
    """The stdout and the stderr of a command that ends with this code."""
    found, output, problems = await relmsg("outbox", *arguments)
    assert found == code, problems
    assert "Traceback" not in problems
    return Told(output, problems)


async def test_a_dry_run_tells_how_many_and_changes_nothing(engine, sessions, relmsg):
    """Each verb counts what it would change, by destination, type or id, and leaves it as it is."""
    lost = to("nowhere", exchange="shop", type="other")
    await commit(sessions, to("q"), to("nowhere", exchange="shop"), lost)
    before = await rows(engine, "*")
    destination = ("--exchange", "shop", "--routing-key", "nowhere", "--dry-run")
    assert (await run(relmsg, "drop", *destination)).stdout == "2 messages would be dropped\n"
    assert (await run(relmsg, "park", *destination, "--type", "other")).stdout == "1 messages would be parked\n"
    assert (await run(relmsg, "redirect", str(lost.id), "--to-routing-key", "q", "--dry-run")).stdout == (
        "1 messages would be redirected\n"
    )
    told = json.loads((await run(relmsg, "drop", *destination, "--json")).stdout)
    assert told == {"dry_run": True, "matching": 2, "dropped": 0}
    assert await rows(engine, "*") == before


async def test_wrong_use_is_told_before_anything_is_done(engine, sessions, relmsg):
    """All of an outbox is never meant; nothing moves unasked; nothing goes where AMQP cannot send it."""
    await commit(sessions, to("q"))
    for told, *arguments in [
        ("name the messages", "drop", "--yes"),
        ("name the messages", "park"),
        ("name the messages", "drop", "1", "--exchange", "shop", "--yes"),
        ("goes with --exchange", "drop", "1", "--routing-key", "q", "--yes"),
        ("say where to", "redirect", "--exchange", "", "--yes"),
        ("there already", "redirect", "--exchange", "a", "--to-exchange", "a", "--yes"),
        ("give --yes", "drop", "--exchange", ""),
        ("give --yes", "redirect", "--exchange", "", "--to-exchange", "a"),
        ("at most 255", "redirect", "--exchange", "", "--to-routing-key", "k" * 256, "--yes"),
    ]:
        told_by = await run(relmsg, *arguments, code=2)
        assert told in told_by.stderr
        assert told_by.stderr.count("\n") == 1
    assert "no message matches" in (await run(relmsg, "drop", "--exchange", "shop", "--yes", code=1)).stderr
    for verb in ("drop", "park"):
        told = await run(relmsg, verb, "--exchange", "shop", "--dry-run")
        assert told.stdout.startswith("0 messages would be "), verb
    assert await rows(engine) == [("q", False, None)]


async def test_messages_without_a_route_are_redirected_under_a_running_relay(
    engine, sessions, database_url, amqp_url, broker, relmsg
):
    """What a relay holds, its probe too, goes to the new destination, in the order of its keys, and to no other."""
    await broker.exchange("shop")
    await broker.queue("q")
    lost = [to("nowhere", str(n), exchange="shop", ordering_key="k") for n in range(50)]
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, *lost, to("q", "last", ordering_key="k"), to("other", exchange="shop"))

        async def held():
            assert len(relay._holds) == 2

        await eventually(held)
        told = await run(
            relmsg,
            *("redirect", "--exchange", "shop", "--routing-key", "nowhere"),
            *("--to-exchange", "", "--to-routing-key", "q", "--yes"),
        )
        assert told.stdout == "redirected 50 of 50 messages\n"

        async def sent():
            assert await waiting(engine) == 1

        await eventually(sent, within=20)
        assert [each.body.decode() for each in await broker.drain("q")] == [*(str(n) for n in range(50)), "last"]
        await eventually(lambda: only_one_hold(relay))


async def only_one_hold(relay):
    assert len(relay._holds) == 1


@pytest.mark.parametrize("verb", ["drop", "park"])
async def test_a_relay_does_not_send_what_was_dropped_or_parked_while_it_was_held(
    engine, sessions, database_url, amqp_url, broker, relmsg, verb
):
    """The probe in the relay's memory is gone with its row: a route that comes later gets none of them."""
    await broker.exchange("shop")
    await broker.queue("q")
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, *(to("nowhere", exchange="shop") for _ in range(3)))

        async def held(count):
            assert len(relay._holds) == count

        await eventually(lambda: held(1))
        flags = ("--yes",) if verb == "drop" else ("--reason", "not for us")
        await run(relmsg, verb, "--exchange", "shop", *flags)
        assert await waiting(engine) == 0
        await eventually(lambda: held(0))
        await broker.queue("late", exchange="shop", routing_key="nowhere")
        await commit(sessions, to("q"), to("nowhere", "new", exchange="shop"))
        await emptied(engine)
        assert [each.body for each in await broker.drain("late")] == [b"new"]
    assert await rows(engine) == ([] if verb == "drop" else [("nowhere", True, "not for us")] * 3)


async def test_what_was_parked_comes_back_by_retry(engine, sessions, relmsg):
    """Parked by an operator is parked as by the relay."""
    await commit(sessions, to("a"), to("b"))
    await run(relmsg, "park", "--exchange", "", "--routing-key", "a")
    assert await rows(engine) == [("a", True, "parked by an operator"), ("b", False, None)]
    await run(relmsg, "retry", "--all")
    assert await rows(engine) == [("b", False, None), ("a", False, None)]


async def test_a_redirected_row_keeps_the_reason_only_where_it_is_parked(engine):
    """The reason of a waiting row was that of its old destination; a parked one stays parked for its own."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, last_error, parked_at) "
                "VALUES ('', 'a', '', 'no route', NULL), ('', 'a', '', 'too large', now())"
            )
        )
    changed = Backlog(engine).changes
    assert await changed.redirect(Chosen(exchange=""), exchange=None, routing_key="b", done=lambda _: None) == 2
    assert await rows(engine) == [("b", False, None), ("b", True, "too large")]


async def test_many_rows_are_changed_in_batches_and_none_that_came_later(engine, monkeypatch):
    """``done`` hears of each batch; a row that is written meanwhile for the same destination stays."""
    monkeypatch.setattr(changes, "BATCH", 10)
    one = (
        "INSERT INTO relmsg.outbox_message (exchange, routing_key, body) SELECT '', 'a', '' FROM generate_series(1, {})"
    )
    heard = []
    async with engine.connect() as beside:
        await beside.execute(text(one.format(25)))
        await beside.commit()
        # Written in the transaction of the first batch, which has the bounds of the change behind it.
        await beside.execute(
            text(
                "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN " + one.format(5) + "; RETURN NULL; END$$"
            )
        )
        await beside.execute(text("CREATE TRIGGER more AFTER DELETE ON relmsg.outbox_message EXECUTE FUNCTION more()"))
        await beside.commit()
    assert await Backlog(engine).changes.drop(Chosen(exchange=""), heard.append) == 25
    assert heard == [10, 10, 5]
    assert len(await rows(engine)) == 15


async def test_a_destination_with_two_reasons_is_held_once(engine):
    """Its messages are counted once, and the reason that is told is that of the latest row."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, last_error, parked_at) VALUES "
                "('shop', 'a', '', 'first', NULL), ('shop', 'a', '', 'second', NULL), ('shop', 'a', '', NULL, NULL), "
                "('shop', 'a', '', 'third', now()), ('shop', 'b', '', 'other', NULL), ('', 'a', '', NULL, NULL)"
            )
        )
    status = await Backlog(engine).status()
    assert status["held"] == [
        {"exchange": "shop", "routing_key": "a", "reason": "second", "messages": 3},
        {"exchange": "shop", "routing_key": "b", "reason": "other", "messages": 1},
    ]
    assert (status["held_destinations"], status["held_messages"], status["waiting"]) == (2, 4, 5)
    assert (await Backlog(engine).status(destinations=1))["held_messages"] == 4
