"""Check-back from the coordinator's side: what lies in a group's queue, when, and what it counts for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import aiormq
import pytest
from sqlalchemy import func, select, text, update

from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.half.checks import MOST_WAITING, Checks
from relmsg.half.coordinator import Coordinator
from relmsg.half.metrics import CoordinatorMetrics
from relmsg.half.state import HalfState
from relmsg.half.store import HalfStore
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.halves import HALF, becomes, coordinating, counted, due_again, half_row, outbox_rows
from tests.support.proxy import Proxy

GROUP_QUEUE = "relmsg.half.check.shop"
QUICK = {"half_check_after": 0.05, "half_check_every": 0.1}
ASKED = {"half_check_after": 0.05, "half_check_every": 600}  # by ``due_again`` only, after the first time


async def say(broker, verb, half_id, number, *, group="shop", **headers):
    """What a member says, as any AMQP client would send it."""
    said = {"relmsg-half": verb, "relmsg-half-id": str(half_id), "relmsg-half-group": group}
    said |= {"relmsg-half-check": number} | {f"relmsg-half-{name}": value for name, value in headers.items()}
    await broker.publish(b"", routing_key="relmsg.half", headers=said, message_id=str(uuid4()))


async def prepare(broker, *, group="shop", **headers):
    """A prepare of a message to the queue ``q``; the half id."""
    half_id = uuid4()
    said = {"tenant": "a", "relmsg-half": "prepare", "relmsg-half-group": group, "relmsg-half-exchange": "e"}
    said |= {"relmsg-half-routing-key": "q"}
    said |= {f"relmsg-half-{name.replace('_', '-')}": value for name, value in headers.items()}
    await broker.publish(b"body", routing_key="relmsg.half", headers=said, message_id=str(half_id), message_type="t")
    return half_id


async def store_halves(engine, count, *, group="shop", overdue=1.0):
    """So many half messages in the table, all of them due."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.half_message (half_id, producer_group, state, type, routing_key, prepared_at, "
                "next_check_at) SELECT gen_random_uuid(), :group, 'PREPARED', 't', 'q', now(), "
                "clock_timestamp() - :overdue * interval '1 s' FROM generate_series(1, :count)"
            ),
            {"group": group, "count": count, "overdue": overdue},
        )


@asynccontextmanager
async def member(broker, answer, queue=GROUP_QUEUE):
    """A member of the group in plain AMQP: ``answer`` is called with each check's half id and number."""
    tasks = set()

    async def handle(delivered):
        number = delivered.header.properties.headers["relmsg-half-check"]
        await answer(UUID(delivered.header.properties.message_id), number)

    async def note(delivered):
        await channel.basic_ack(delivered.delivery_tag)
        task = asyncio.create_task(handle(delivered))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async with broker.channel() as channel:
        await channel.queue_declare(
            queue,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-delivery-limit": 20, "x-overflow": "reject-publish"},
        )
        await channel.basic_qos(prefetch_count=10)
        await channel.basic_consume(queue, note)
        yield
    await asyncio.gather(*tasks)


async def ready(broker, queue, count, *, within=20):
    """Wait until so many messages are in the queue."""

    async def check():
        try:
            assert await broker.count(queue) == count
        except aiormq.exceptions.ChannelNotFoundEntity:
            raise AssertionError(f"{queue} is not there yet") from None

    await eventually(check, within=within)


def value(coordinator, name, **labels):
    return coordinator.metrics.registry.get_sample_value(name, labels)


async def test_a_check_carries_the_message_and_its_number(broker, engine, database_url, amqp_url):
    """It waits in the queue of its group, whoever is there: the message as it was, where it is to go, and number 1."""
    async with coordinating(database_url, amqp_url, half_check_after=0.05, half_check_every=3600) as coordinator:
        half_id = await prepare(broker, expires_in=90_000)
        await ready(broker, GROUP_QUEUE, 1)
        await eventually(lambda: _is(1, value(coordinator, "relmsg_half_checks_sent_total")))
    (check,) = await broker.drain(GROUP_QUEUE)
    assert (check.message_id, check.body, check.properties.message_type) == (str(half_id), b"body", "t")
    assert check.properties.expiration is None
    assert check.properties.delivery_mode == 2
    own = {name: said for name, said in check.headers.items() if not name.startswith("x-")}
    assert own == {
        "tenant": "a",
        "relmsg-half": "check",
        "relmsg-half-group": "shop",
        "relmsg-half-exchange": "e",
        "relmsg-half-routing-key": "q",
        "relmsg-half-expires-in": 90_000,
        "relmsg-half-check": 1,
    }
    row = await half_row(engine, half_id)
    assert (row.state, row.checks, row.check_sent, row.check_received) == ("PREPARED", 0, 1, 0)


def _is(wanted, found):
    assert found == wanted


async def answered(coordinator, count, *, answer):
    """Wait until so many checks were answered so."""
    await eventually(lambda: _is(count, value(coordinator, "relmsg_half_checks_total", answer=answer)))


async def test_no_check_is_sent_before_its_time(broker, engine, database_url, amqp_url):
    """Nor once the half message is decided."""
    async with coordinating(database_url, amqp_url, half_check_after=3600) as coordinator:
        late = await prepare(broker)
        soon = await prepare(broker, check_after=50)
        await ready(broker, GROUP_QUEUE, 1)
        await say(broker, "answer", soon, 1, resolution="ROLLBACK")
        await becomes(engine, soon, HalfState.ROLLED_BACK)
        assert value(coordinator, "relmsg_half_checks_sent_total") == 1
    assert [each.message_id for each in await broker.drain(GROUP_QUEUE)] == [str(soon)]
    assert (await half_row(engine, late)).check_sent == 0


async def test_a_lost_check_is_sent_anew(broker, engine, database_url, amqp_url):
    """A member took it and died, the queue was emptied or deleted: the next one comes, with the next number."""
    async with coordinating(database_url, amqp_url, **QUICK):
        half_id = await prepare(broker)
        numbers = []
        for lose in (broker.drain, broker.delete_queue, broker.drain):
            await ready(broker, GROUP_QUEUE, 1)
            numbers.append((await half_row(engine, half_id)).check_sent)
            await lose(GROUP_QUEUE)
        await ready(broker, GROUP_QUEUE, 1)
        (check,) = await broker.drain(GROUP_QUEUE)
    assert numbers == [1, 2, 3]
    assert check.headers["relmsg-half-check"] == 4
    assert (await half_row(engine, half_id)).checks == 0


async def test_after_the_last_check_it_is_parked_with_an_alert(broker, engine, database_url, amqp_url, caplog):
    """Exactly as many checks as are allowed, all answered UNKNOWN: then PARKED, counted, logged, and no more checks."""
    asked = []

    async def unknown(half_id, number):
        asked.append(number)
        await say(broker, "received", half_id, number)
        await say(broker, "answer", half_id, number, resolution="UNKNOWN")

    async with member(broker, unknown), coordinating(database_url, amqp_url, **ASKED) as coordinator:
        half_id = await prepare(broker, max_checks=4)
        for answers in range(1, 5):
            await answered(coordinator, answers, answer="unknown")
            await due_again(engine)
        row = await becomes(engine, half_id, HalfState.PARKED)
        assert (row.checks, row.check_received, row.last_answer) == (4, 4, "unknown")
        await eventually(lambda: _is(1, value(coordinator, "relmsg_half_outcomes_total", outcome="parked")))
        assert value(coordinator, "relmsg_half_checks_received_total") == 4
        assert value(coordinator, "relmsg_half_checks_total", answer="unknown") == 4
    async with coordinating(database_url, amqp_url) as another:  # it measures when it begins, and then ever more rarely
        await eventually(lambda: _is(1, value(another, "relmsg_half_parked")), within=20)
    assert asked == [1, 2, 3, 4]
    assert f"half message {half_id} (t) of group 'shop' is parked: 4 checks" in caplog.text
    assert await outbox_rows(engine) == []


async def test_checks_that_end_their_members_count(broker, engine, database_url, amqp_url):
    """Received and never answered, as by a checker that kills the process: parked in the end."""

    async def die(half_id, number):
        await say(broker, "received", half_id, number)

    async with member(broker, die), coordinating(database_url, amqp_url, half_max_checks=3, **ASKED) as coordinator:
        half_id = await prepare(broker)
        for checks in range(1, 4):
            await eventually(lambda checks=checks: _is(checks, value(coordinator, "relmsg_half_checks_received_total")))
            await due_again(engine)
        row = await becomes(engine, half_id, HalfState.PARKED)
    assert (row.checks, row.check_sent, row.last_answer) == (3, 3, None)


async def test_a_type_without_a_checker_is_an_alert(broker, engine, database_url, amqp_url, caplog):
    """UNKNOWN as any other, and told for itself."""

    async def nobody(half_id, number):
        await say(broker, "answer", half_id, number, resolution="UNKNOWN", reason="no_checker")

    async with member(broker, nobody), coordinating(database_url, amqp_url, half_max_checks=2, **ASKED) as coordinator:
        half_id = await prepare(broker)
        for answers in (1, 2):
            await answered(coordinator, answers, answer="no_checker")
            await due_again(engine)
        row = await becomes(engine, half_id, HalfState.PARKED)
        assert value(coordinator, "relmsg_half_checks_total", answer="unknown") == 0
    assert (row.last_answer, row.checks) == ("no_checker", 2)
    assert f"half message {half_id}: group 'shop' has no checker for its type" in caplog.text


async def test_an_answer_after_parking_decides(broker, engine, database_url, amqp_url):
    """A checker that took too long still knows."""
    async with coordinating(database_url, amqp_url):
        half_id = await prepare(broker)
        await becomes(engine, half_id, HalfState.PREPARED)
        async with engine.begin() as connection:
            await connection.execute(update(HALF).values(state="PARKED", next_check_at=None, check_sent=15))
        await say(broker, "answer", half_id, 15, resolution="COMMIT")
        row = await becomes(engine, half_id, HalfState.COMMITTED)
    assert (row.decided_by, row.last_answer) == ("checker shop", "commit")
    assert [each.message_id for each in await outbox_rows(engine)] == [half_id]


async def test_a_parked_one_that_is_resumed_is_checked_again(broker, engine, database_url, amqp_url):
    """From the first check on, with new numbers, so that old answers cannot count for new checks."""
    async with coordinating(database_url, amqp_url, **QUICK):
        half_id = await prepare(broker, check_after=3_600_000)
        await becomes(engine, half_id, HalfState.PREPARED)
        async with engine.begin() as connection:
            values = {"check_sent": 15, "check_received": 15, "checks": 0, "next_check_at": func.clock_timestamp()}
            await connection.execute(update(HALF).values(**values))
        await ready(broker, GROUP_QUEUE, 1)
        await say(broker, "received", half_id, 15)
        await say(broker, "received", half_id, 16)

        async def counted_once():
            row = await half_row(engine, half_id)
            assert (row.checks, row.check_received) == (1, 16)

        await eventually(counted_once)
    (check,) = [each for each in await broker.drain(GROUP_QUEUE) if each.headers["relmsg-half-check"] == 16]
    assert check.message_id == str(half_id)


async def test_a_groups_queue_is_never_filled_over_its_cap(broker, engine, database_url, amqp_url):
    """250 are due: a hundred wait in the queue, the rest is postponed and uncounted. As the group takes some, others
    come, until all were asked."""
    await store_halves(engine, 250)
    seen = Counter()
    async with coordinating(database_url, amqp_url, half_check_every=0.2, half_check_rate=10_000):
        await ready(broker, GROUP_QUEUE, MOST_WAITING)
        for _ in range(20):  # looks, not time: each scan in between would show itself
            assert await broker.count(GROUP_QUEUE) <= MOST_WAITING
        async with engine.connect() as connection:
            sums = (await connection.execute(select(func.sum(HALF.c.check_sent), func.sum(HALF.c.checks)))).one()
        assert sums == (100, 0)
        while len(seen) < 250:

            async def more():
                taken = await broker.drain(GROUP_QUEUE)
                assert taken
                return taken

            assert await broker.count(GROUP_QUEUE) <= MOST_WAITING
            taken = await eventually(more, within=20)
            seen.update(each.message_id for each in taken)
            for each in taken:
                await say(broker, "answer", each.message_id, each.headers["relmsg-half-check"], resolution="ROLLBACK")
    assert len(seen) == 250


async def test_checks_are_sent_at_a_rate(broker, engine, database_url, amqp_url):
    """One look sends no more than its share of the rate, the longest overdue first, of whatever group."""
    for number in range(10):
        await store_halves(engine, 1, group=f"g{number}", overdue=100 - number)
    async with coordinating(database_url, amqp_url, scan_every=3, half_check_rate=1) as coordinator:
        await eventually(lambda: _is(3, value(coordinator, "relmsg_half_checks_sent_total")))
        async with engine.connect() as connection:
            asked = (await connection.execute(select(HALF.c.producer_group).where(HALF.c.check_sent > 0))).scalars()
            assert set(asked) == {"g0", "g1", "g2"}


async def _sent(engine):
    async with engine.connect() as connection:
        return await connection.scalar(select(func.count()).where(HALF.c.check_sent > 0))


async def test_a_group_that_cannot_be_asked_holds_up_nobody(broker, engine, database_url, amqp_url, caplog):
    """Its queue belongs to somebody else: it is told, postponed and not counted, and the others are asked."""
    await store_halves(engine, 300, overdue=10)
    await store_halves(engine, 3, group="bank")
    async with broker.channel() as channel:
        await channel.queue_declare(GROUP_QUEUE, exclusive=True)
        async with coordinating(database_url, amqp_url, half_check_every=30, half_check_rate=2000):
            await ready(broker, "relmsg.half.check.bank", 3)
    assert "group 'shop' cannot be asked" in caplog.text
    async with engine.connect() as connection:
        of_shop = select(func.sum(HALF.c.check_sent), func.max(HALF.c.checks)).where(HALF.c.producer_group == "shop")
        assert (await connection.execute(of_shop)).one() == (0, 0)
    assert await counted(engine) == {"PREPARED": 303}


@pytest.mark.parametrize("chance", [0.0, 0.999])
async def test_checks_after_the_first_have_a_jitter(engine, database_url, amqp_url, chance):
    """Ten percent to each side of the interval, drawn for each check."""
    await store_halves(engine, 5)
    settings = Settings(database_url=database_url, amqp_url=amqp_url, probes="", half_check_every=30)
    coordinator, stop = Coordinator(settings, chance=lambda: chance), asyncio.Event()
    running = asyncio.create_task(coordinator.run(stop))

    async def asked():
        assert await _sent(engine) == 5

    await eventually(asked)
    stop.set()
    await running
    async with engine.connect() as connection:
        ahead = func.extract("epoch", HALF.c.next_check_at - func.clock_timestamp())
        found = [float(each) for each in (await connection.execute(select(ahead))).scalars()]
    expected = 30 * (0.9 + 0.2 * chance)
    assert all(expected - 5 < each <= expected + 0.1 for each in found)


async def test_a_broker_that_is_away_costs_no_check(broker, engine, amqp_url):
    """Nothing is claimed while it does not answer; when it is back, everyone is asked once."""
    await store_halves(engine, 5)
    async with Proxy.before(amqp_url) as proxy, Connection([proxy.through(amqp_url)], chance=lambda: 0.1) as connection:
        channel, metrics = ConfirmChannel(connection), CoordinatorMetrics()
        checks = Checks(
            HalfStore(engine),
            connection,
            channel,
            metrics=metrics,
            chance=random.random,
            postpone=timedelta(seconds=30),
        )
        await proxy.refuse()
        proxy.reset()
        assert await checks.scan(100) == 0
        assert await _sent(engine) == 0
        await proxy.accept()
        await eventually(lambda: _is(True, connection.is_up))
        assert await checks.scan(100) == 5
        assert await checks.scan(100) == 0
        await channel.close()
    assert await broker.count(GROUP_QUEUE) == 5
