"""Check-back: what nobody has decided is asked of the group, until somebody knows."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import func, select, text

from relmsg import HalfMessage, HalfProducer, HalfState, Message, Resolution
from relmsg.errors import HalfRolledBack
from relmsg.half.checks import MOST_WAITING
from relmsg.half.coordinator import Coordinator
from relmsg.half.fence import Fence, create_fence
from relmsg.half.protocol import COORDINATOR, checks_of
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.halves import HALF, becomes, coordinating, counted, due_again, half_row, outbox_rows
from tests.support.processes import Processes

COMMITTED, ROLLED_BACK, PREPARED, PARKED = (
    HalfState.COMMITTED,
    HalfState.ROLLED_BACK,
    HalfState.PREPARED,
    HalfState.PARKED,
)
QUEUE = checks_of("shop").name
SOON = {"half_check_after": 0.05, "half_check_every": 0.1}

POISONED = """
import asyncio, os, signal, sys
from relmsg import HalfProducer

async def main():
    async with HalfProducer(os.environ["RELMSG_AMQP_URL"], group="shop") as half:
        @half.checker("order.placed")
        async def check(half_message):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def coordinator(database_url: str, amqp_url: str) -> AsyncIterator[Coordinator]:
    async with coordinating(database_url, amqp_url, **SOON) as coordinator:
        yield coordinator


@pytest.fixture
async def half(coordinator, amqp_url: str) -> AsyncIterator[HalfProducer]:
    async with HalfProducer(amqp_url, group="shop") as half:
        yield half


async def left_open(half: HalfProducer, message: Message | None = None, **terms: object) -> Message:
    """A message that is prepared, and of which nobody has said what becomes of it."""
    message = message or Message(type="order.placed", body={"id": 7}, routing_key="orders")
    with pytest.raises(ZeroDivisionError):
        async with half.begin(message, **terms):
            1 / 0  # noqa: B018
    return message


def _is(wanted: object, found: object) -> None:
    assert found == wanted


def sample(coordinator: Coordinator, name: str, **labels: str) -> float:
    return coordinator.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("said", "state", "sent"), [(Resolution.COMMIT, COMMITTED, 1), (Resolution.ROLLBACK, ROLLED_BACK, 0)]
)
async def test_the_checker_decides(half, engine, said, state, sent):
    """What the checker says of a half message that was left open is done, and the row tells who has decided."""
    asked: list[HalfMessage] = []

    @half.checker("order.placed")
    async def check(half_message: HalfMessage) -> Resolution:
        asked.append(half_message)
        return said

    message = Message(
        type="order.placed", body={"id": 7}, exchange="shop", routing_key="orders", ordering_key="7",
        headers={"tenant": "a"}, correlation_id="c", reply_to="r", expiration=60,
    )  # fmt: skip
    await left_open(half, message, check_every=60)
    row = await becomes(engine, message.id, state)
    assert (row.decided_by, row.last_answer, row.checks) == ("checker shop", said.lower(), 1)
    assert len(await outbox_rows(engine)) == sent
    (seen,) = asked
    assert (seen.id, seen.type, seen.body, seen.group, seen.check) == (message.id, message.type, b'{"id":7}', "shop", 1)
    whole = seen.message
    assert (whole.exchange, whole.routing_key, whole.ordering_key) == ("shop", "orders", "7")
    assert (whole.headers, whole.correlation_id, whole.reply_to) == ({"tenant": "a"}, "c", "r")
    assert whole.source == "shop"


async def test_doubt_is_asked_again(amqp_url, coordinator, engine):
    """H12: an exception, a timeout, nothing and UNKNOWN all leave it open; the next check asks, and each one counts."""
    checks: list[int] = []

    async def fail() -> Resolution:
        raise ZeroDivisionError

    async def forget() -> None:
        pass

    async def unsure() -> Resolution:
        return Resolution.UNKNOWN

    async def sure() -> Resolution:
        return Resolution.COMMIT

    answers = iter([fail, forget, asyncio.Event().wait, unsure, sure])
    async with HalfProducer(amqp_url, group="shop", checker_timeout=0.1) as half:

        @half.checker("order.placed")
        async def check(half_message: HalfMessage) -> Resolution:
            checks.append(half_message.check)
            return await next(answers)()

        message = await left_open(half)
        row = await becomes(engine, message.id, COMMITTED)
    assert (row.checks, row.check_received) == (5, checks[-1])
    assert checks == sorted(set(checks)), "one at a time, and no number twice"
    assert len(checks) == 5
    assert sample(coordinator, "relmsg_half_checks_total", answer="unknown") == 4
    assert sample(coordinator, "relmsg_half_checks_total", answer="commit") == 1


async def test_without_a_checker_for_the_type_it_stays_and_alerts(half, coordinator, engine):
    """H6: a member that has no checker for the type answers UNKNOWN, which has a metric; a checker that comes later is
    asked."""

    @half.checker("order.cancelled")
    async def other(half_message: HalfMessage) -> Resolution:
        return Resolution.ROLLBACK

    message = await left_open(half, max_checks=1000)

    def alerted() -> None:
        assert sample(coordinator, "relmsg_half_checks_total", answer="no_checker") >= 2

    await eventually(alerted)
    row = await half_row(engine, message.id)
    assert (row.state, row.last_answer) == ("PREPARED", "no_checker")
    half.checker("order.placed")(lambda_commit)
    await becomes(engine, message.id, COMMITTED)


async def lambda_commit(half_message: HalfMessage) -> Resolution:
    return Resolution.COMMIT


async def test_after_the_last_check_it_is_parked_and_never_dropped(half, coordinator, engine, broker: Broker):
    """H2: so many checks without a decision, and it is parked: asked no more, kept, and still the producer's to
    decide."""
    asked = 0

    @half.checker("order.placed")
    async def check(half_message: HalfMessage) -> Resolution:
        nonlocal asked
        asked += 1
        return Resolution.UNKNOWN

    def answers() -> float:
        return sample(coordinator, "relmsg_half_checks_total", answer="unknown")

    async def parked_by(checks: int) -> Message:
        """One that is parked when it was checked so often."""
        before = answers()
        message = await left_open(half, max_checks=checks, check_every=600)
        for check in range(1, checks + 1):
            await eventually(lambda check=check: _is(before + check, answers()))
            await due_again(engine)
        row = await becomes(engine, message.id, PARKED)
        assert row.checks == checks
        return message

    message = await parked_by(3)
    assert asked == 3
    await eventually(lambda: _is(1, sample(coordinator, "relmsg_half_outcomes_total", outcome="parked")))
    await parked_by(2)  # it goes its whole way, and nothing is asked about the first
    assert asked == 5
    assert await outbox_rows(engine) == []
    assert await half.commit(message.id) is COMMITTED
    assert [row.message_id for row in await outbox_rows(engine)] == [message.id]


async def test_a_group_that_is_away_parks_nothing(half, engine, amqp_url, broker: Broker):
    """RocketMQ's trap (a): for longer than 15 intervals nobody is there to be asked; nothing counts, one check waits,
    and the first member that comes is asked."""
    message = await left_open(half, max_checks=3)
    intervals: set[datetime] = set()

    async def many_intervals() -> None:
        row = await half_row(engine, message.id)
        intervals.add(row.next_check_at)
        assert len(intervals) > 16

    await eventually(many_intervals, within=60)
    row = await half_row(engine, message.id)
    assert (row.state, row.checks) == ("PREPARED", 0)
    assert await broker.count(QUEUE) == 1
    asked: list[int] = []

    @half.checker("order.placed")
    async def check(half_message: HalfMessage) -> Resolution:
        asked.append(half_message.check)
        return Resolution.COMMIT

    row = await becomes(engine, message.id, COMMITTED)
    # The next interval can end between the taking of the check and the word that it was received.
    assert asked in ([1], [1, 2])
    assert row.checks <= len(asked)


async def test_a_check_that_kills_its_member_counts_and_is_not_repeated(
    half, engine, processes: Processes, broker: Broker
):
    """A check that ended the process that had it is dropped by the next member, which is asked anew at the next
    interval; both count."""
    poisoned = await processes.python_with_relmsg("-c", POISONED)

    async def taken() -> None:
        assert await broker.consumers(QUEUE) == 1

    async def exists() -> None:
        assert await broker.exists(QUEUE)

    await eventually(exists)
    await eventually(taken)
    message = await left_open(half, check_every=1)
    assert await poisoned.wait() == -signal.SIGKILL
    asked: list[int] = []

    @half.checker("order.placed")
    async def check(half_message: HalfMessage) -> Resolution:
        asked.append(half_message.check)
        return Resolution.COMMIT

    row = await becomes(engine, message.id, COMMITTED)
    assert asked == [2]
    assert (row.checks, row.check_received) == (2, 2)


async def test_a_check_under_way_is_finished_on_leaving(coordinator, engine, amqp_url):
    """A member that leaves lets the checker that runs come to its answer."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    async with HalfProducer(amqp_url, group="shop") as half:

        @half.checker("order.placed")
        async def check(half_message: HalfMessage) -> Resolution:
            begun.set()
            await go_on.wait()
            return Resolution.COMMIT

        message = await left_open(half, check_every=60)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    await becomes(engine, message.id, COMMITTED)


async def test_a_checker_works_in_the_trace_of_its_message(half, engine):
    """The trace that the prepare was in goes on in the checker of whichever member is asked."""
    seen: list[int] = []

    @half.checker("order.placed")
    async def check(half_message: HalfMessage) -> Resolution:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        return Resolution.COMMIT

    context = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        traced = await left_open(half, check_every=60)
    await becomes(engine, traced.id, COMMITTED)
    await becomes(engine, (await left_open(half, check_every=60)).id, COMMITTED)
    assert seen == [0xABC, 0]


async def test_an_answer_from_another_group_does_not_count(half, coordinator, engine, broker: Broker):
    """H11: an answer that names another group, and one under no login, leave the half message as it is."""
    message = await left_open(half, check_after=60)

    async def forged(group: str) -> None:
        headers = {
            "relmsg-half": "answer",
            "relmsg-half-id": str(message.id),
            "relmsg-half-group": group,
            "relmsg-half-check": 1,
            "relmsg-half-resolution": "COMMIT",
        }
        await broker.publish(b"", routing_key=COORDINATOR, headers=headers, message_id=f"forged-{group}")

    await forged("thieves")
    await forged("shop")

    def refused() -> None:
        assert sample(coordinator, "relmsg_half_refused_total", reason="another_group") == 1
        assert sample(coordinator, "relmsg_half_refused_total", reason="another_user") == 1

    await eventually(refused)
    row = await half_row(engine, message.id)
    assert (row.state, row.decided_by, row.checks) == ("PREPARED", None, 0)
    assert await outbox_rows(engine) == []


@pytest.mark.parametrize("commits", [True, False])
async def test_a_local_transaction_may_stay_open_across_checks(half, engine, sessions, amqp_url, commits):
    """H1: while the local transaction is open three checks say UNKNOWN; then they say what it came to."""
    await create_fence(engine)
    await _create_payments(engine)
    fenced = HalfProducer(amqp_url, group="shop", fence=Fence(lock_seconds=0.05))
    fenced.checker("order.placed")(fenced.fenced_checker(sessions))
    async with fenced:
        message = Message(type="order.placed", routing_key="orders")

        async def three_checks() -> None:
            row = await half_row(engine, message.id)
            assert row.checks >= 3
            assert (row.state, row.last_answer) == ("PREPARED", "unknown")

        async def pay_slowly_and_break() -> None:
            async with half.begin(message, max_checks=1000) as tx, sessions() as session:
                await half.fence(session, tx)
                await session.execute(text("INSERT INTO payment (id) VALUES (:id)"), {"id": str(tx.half_id)})
                await eventually(three_checks, within=30)
                if commits:
                    await session.commit()
                1 / 0  # noqa: B018

        with pytest.raises(ZeroDivisionError):
            await pay_slowly_and_break()
        await becomes(engine, message.id, COMMITTED if commits else ROLLED_BACK)
    assert await _payments(engine) == ([str(message.id)] if commits else [])
    assert len(await outbox_rows(engine)) == (1 if commits else 0)


async def test_a_local_transaction_that_comes_after_the_check_fails(half, engine, sessions):
    """H1, reversed: the checker was first and said ROLLBACK; the local transaction then cannot commit its work."""
    await create_fence(engine)
    await _create_payments(engine)
    half.checker("order.placed")(half.fenced_checker(sessions))
    message = Message(type="order.placed", routing_key="orders")

    async def pay_too_late() -> None:
        async with half.begin(message) as tx:
            await becomes(engine, message.id, ROLLED_BACK)
            async with sessions() as session, session.begin():
                await session.execute(text("INSERT INTO payment (id) VALUES (:id)"), {"id": str(tx.half_id)})
                await half.fence(session, tx)

    with pytest.raises(HalfRolledBack):
        await pay_too_late()
    assert await _payments(engine) == []
    assert await outbox_rows(engine) == []


async def _create_payments(engine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE payment (id text)"))


async def _payments(engine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT id FROM payment")))


async def _insert_open(engine, count: int, *, check_every: str = "0.2 seconds") -> None:
    """So many half messages whose first check is long overdue."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.half_message (half_id, producer_group, state, type, routing_key, prepared_at, "
                "next_check_at, check_every) SELECT gen_random_uuid(), 'shop', 'PREPARED', 'order.placed', 'orders', "
                "clock_timestamp() - interval '1 hour', clock_timestamp() - interval '1 hour', "
                "CAST(:check_every AS text)::interval FROM generate_series(1, :count)"
            ),
            {"count": count, "check_every": check_every},
        )


class Depth:
    """The most messages that ever waited in a queue, looked at all the time."""

    def __init__(self, broker: Broker) -> None:
        self.most = 0
        self._broker = broker

    async def look(self) -> int:
        depth = await self._broker.count(QUEUE) if await self._broker.exists(QUEUE) else 0
        self.most = max(self.most, depth)
        return depth


async def test_ten_thousand_open_ones_are_asked_under_the_cap(engine, database_url, amqp_url, broker: Broker):
    """H7: after an outage, with coordinators restarted, at most 100 checks wait for the group, also once it is back and
    answers them; each message is sent once, and none is lost."""
    await _insert_open(engine, 10_000)
    depth = Depth(broker)
    for _ in range(2):
        async with coordinating(database_url, amqp_url, half_check_rate=10_000, **SOON) as coordinator:

            async def full() -> None:
                assert await depth.look() == MOST_WAITING

            await eventually(full, within=30)
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.sum(HALF.c.checks))) == 0
    async with (
        coordinating(database_url, amqp_url, half_check_rate=10_000, **SOON) as coordinator,
        HalfProducer(amqp_url, group="shop", concurrency=50) as half,
    ):
        half.checker("order.placed")(lambda_commit)

        async def many_committed() -> None:
            await depth.look()
            assert (await counted(engine)).get("COMMITTED", 0) >= 5 * MOST_WAITING

        await eventually(many_committed, within=60)
        assert coordinator.ready() is None
    assert depth.most <= MOST_WAITING
    found = await counted(engine)
    sent = [row.message_id for row in await outbox_rows(engine)]
    assert len(sent) == len(set(sent)) == found["COMMITTED"]
    assert sum(found.values()) == 10_000


async def test_two_coordinators_share_the_checks(engine, database_url, amqp_url):
    """Two coordinators ask about the same half messages: each check is sent by one of them, each message once."""
    # A check that is not received by then is sent again, and rightly.
    await _insert_open(engine, 120, check_every="1 hour")
    asked: list[tuple[UUID, int]] = []
    async with (
        coordinating(database_url, amqp_url, half_check_every=3600) as one,
        coordinating(database_url, amqp_url, half_check_every=3600) as two,
        HalfProducer(amqp_url, group="shop") as half,
    ):

        @half.checker("order.placed")
        async def check(half_message: HalfMessage) -> Resolution:
            asked.append((half_message.id, half_message.check))
            return Resolution.COMMIT if half_message.check > 1 else Resolution.UNKNOWN

        async def all_committed() -> None:
            await due_again(engine)
            assert await counted(engine) == {"COMMITTED": 120}
            assert sum(sample(each, "relmsg_half_outcomes_total", outcome="committed") for each in (one, two)) == 120

        await eventually(all_committed, within=60, every=0.1)
        assert len(asked) == len(set(asked))
        assert len({(half_id, check) for half_id, check in asked if check <= 2}) == 240
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.min(HALF.c.checks))) >= 2
    assert len({row.message_id for row in await outbox_rows(engine)}) == len(await outbox_rows(engine)) == 120
