"""HalfProducer: prepared first, then decided, and every answer the true one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from relmsg import HalfProducer, HalfState, Message, Nacked, Resolution, Retry, Returned, Unknown
from relmsg.errors import (
    BodyTooLarge,
    BrokerAway,
    CheckerRefused,
    GroupRefused,
    HalfOfAnotherGroup,
    HalfRolledBack,
    HalfUnknown,
    HeaderNameRefused,
    PropertyRefused,
    UsageError,
)
from relmsg.half.protocol import COORDINATOR, checks_of
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.halves import becomes, coordinating, half_row, outbox_rows
from tests.support.proxy import Mode, Proxy

COMMITTED, ROLLED_BACK, PREPARED = HalfState.COMMITTED, HalfState.ROLLED_BACK, HalfState.PREPARED


@pytest.fixture
async def coordinator(database_url: str, amqp_url: str) -> AsyncIterator[None]:
    async with coordinating(database_url, amqp_url):
        yield


@pytest.fixture
async def half(coordinator, amqp_url: str) -> AsyncIterator[HalfProducer]:
    async with HalfProducer(amqp_url, group="shop") as half:
        yield half


def order(**given: object) -> Message:
    return Message(**{"type": "order.placed", "body": {"id": 7}, "routing_key": "orders", **given})


async def left_open(half: HalfProducer, **given: object) -> Message:
    """A message that is prepared, and of which nobody has said what becomes of it."""
    message = order(**given)
    with pytest.raises(ZeroDivisionError):
        async with half.begin(message):
            1 / 0  # noqa: B018
    return message


async def test_leaving_cleanly_commits(half, engine):
    """Inside the block the message is stored and invisible; after it the outbox has it, whole and under its id."""
    message = order(
        exchange="shop", ordering_key="7", headers={"tenant": "a", "nested": {"n": [1, None, True]}},
        correlation_id="c", reply_to="r", content_encoding="identity", source="orders",
    )  # fmt: skip
    async with half.begin(message) as tx:
        assert tx.state is PREPARED
        assert tx.half_id == message.id
        assert (await becomes(engine, message.id, PREPARED)).producer_group == "shop"
        assert await outbox_rows(engine) == []
    assert tx.state is COMMITTED
    (row,) = await outbox_rows(engine)
    assert (row.message_id, row.type, row.source, row.body) == (message.id, "order.placed", "orders", b'{"id":7}')
    assert (row.exchange, row.routing_key, row.ordering_key) == ("shop", "orders", "7")
    assert row.headers == {"tenant": "a", "nested": {"n": [1, None, True]}}
    assert (row.content_type, row.content_encoding) == ("application/json", "identity")
    assert (row.correlation_id, row.reply_to, row.expires_at) == ("c", "r", None)
    kept = await half_row(engine, message.id)
    assert (kept.state, kept.decided_by) == ("COMMITTED", "producer shop")


async def test_an_exception_inside_sends_nothing(half, engine):
    """An exception leaves the half message to the check-back: it is neither committed nor rolled back."""
    with pytest.raises(ZeroDivisionError):
        async with half.begin(order()) as tx:
            1 / 0  # noqa: B018
    assert tx.state is HalfState.UNKNOWN
    # What is sent after it is answered, so nothing about it is on its way any more.
    async with half.begin(order()):
        pass
    assert (await half_row(engine, tx.half_id)).state == "PREPARED"
    assert len(await outbox_rows(engine)) == 1


async def test_a_cancelled_block_sends_nothing(half, engine):
    """A task that is cancelled in its local work leaves the half message to the check-back as well."""
    inside = asyncio.Event()

    async def work():
        async with half.begin(message):
            inside.set()
            await asyncio.Event().wait()

    message = order()
    working = asyncio.create_task(work())
    await inside.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    async with half.begin(order()):
        pass
    assert (await half_row(engine, message.id)).state == "PREPARED"


async def test_a_rollback_inside_is_final(half, engine):
    """After an explicit rollback leaving the block commits nothing, and a later commit is told ROLLED_BACK."""
    async with half.begin(order()) as tx:
        assert await tx.rollback() is ROLLED_BACK
    assert tx.state is ROLLED_BACK
    assert await tx.commit() is ROLLED_BACK
    assert await half.commit(tx.half_id) is ROLLED_BACK
    assert await half.rollback(str(tx.half_id).upper()) is ROLLED_BACK
    assert await outbox_rows(engine) == []


async def test_a_commit_inside_is_final(half, engine):
    """Commits may be repeated, in the block and from elsewhere; a later rollback is told COMMITTED; one row results."""
    async with half.begin(order()) as tx:
        assert await tx.commit() is COMMITTED
        assert await tx.commit() is COMMITTED
    assert await tx.rollback() is COMMITTED
    assert await half.rollback(tx.half_id) is COMMITTED
    assert await half.commit(tx.half_id) is COMMITTED
    assert len(await outbox_rows(engine)) == 1


async def test_racing_decisions_are_told_the_same_end(half, engine, amqp_url):
    """H4: of commits and rollbacks at once from several processes one counts, and all are told which."""
    async with HalfProducer(amqp_url, group="shop") as other:
        for _ in range(20):
            message = await left_open(half)
            decisions = (half.commit, other.rollback, other.commit, half.rollback)
            ends = set(await asyncio.gather(*(decide(message.id) for decide in decisions)))
            assert len(ends) == 1
            assert ends <= {COMMITTED, ROLLED_BACK}
            sent = [row.message_id for row in await outbox_rows(engine)]
            assert sent.count(message.id) == (1 if ends == {COMMITTED} else 0)


async def test_a_commit_that_finds_a_rollback_raises(half, amqp_url):
    """Whoever leaves the block cleanly, and was rolled back meanwhile, gets an error and not silence."""
    async with HalfProducer(amqp_url, group="shop") as other:
        with pytest.raises(HalfRolledBack, match="will not be sent"):
            async with half.begin(order()) as tx:
                assert await other.rollback(tx.half_id) is ROLLED_BACK
        assert tx.state is ROLLED_BACK


async def test_without_a_coordinator_the_local_work_never_starts(amqp_url, broker: Broker):
    """H5: where no coordinator has ever run the prepare is returned, and the block is not entered."""
    async with HalfProducer(amqp_url, group="shop") as half:
        entered = False
        with pytest.raises(Returned) as told:
            async with half.begin(order()):
                entered = True
        assert not entered
        assert "relmsg relay" in told.value.__notes__[0]
    assert not await broker.exists(COORDINATOR)


async def test_a_refused_prepare_raises_nacked(amqp_url, broker: Broker):
    """H5: a full queue refuses the prepare, also after the retries, and the block is not entered."""
    await broker.queue(COORDINATOR, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    async with HalfProducer(amqp_url, group="shop", retry=Retry(attempts=2, base=0.01)) as half:
        await left_open(half)
        with pytest.raises(Nacked):
            async with half.begin(order()):
                pytest.fail("entered")
    assert await broker.count(COORDINATOR) == 1


async def test_a_prepare_that_is_refused_for_a_moment_is_sent_again(amqp_url, broker: Broker):
    """A nack of the coordinators' queue, as while it changes its leader, costs a retry and no error."""
    await broker.queue(COORDINATOR, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    retry = Retry(attempts=1000, base=0.01, cap=0.05)
    async with HalfProducer(amqp_url, group="shop", retry=retry, answer_within=0.05) as half:
        first, second = await left_open(half), order()
        entered, leave = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            async with half.begin(second) as tx:
                entered.set()
                await leave.wait()
                await broker.drain(COORDINATOR)
            assert tx.state is HalfState.UNKNOWN

        working = asyncio.create_task(work())
        done, _ = await asyncio.wait({working}, timeout=0.3)
        assert not done
        assert not entered.is_set()
        assert [said.message_id for said in await broker.drain(COORDINATOR, most=1)] == [str(first.id)]
        await entered.wait()
        leave.set()
        await working


async def test_a_lost_confirm_raises_unknown(coordinator, amqp_url, engine):
    """H5: a prepare without an answer is Unknown; the block is not entered, though the message may be stored."""
    async with Proxy.before(amqp_url) as proxy, HalfProducer(proxy.through(amqp_url), group="shop", deadline=1) as half:
        await left_open(half)
        proxy.to_client.mode = Mode.DROP
        message = order()
        with pytest.raises(Unknown):
            async with half.begin(message):
                pytest.fail("entered")
        await becomes(engine, message.id, PREPARED)
        proxy.heal()
        proxy.reset()

        async def ask() -> HalfState:
            try:
                state = await half.rollback(message.id)
            except BrokerAway as error:
                raise AssertionError from error
            assert state.is_final
            return state

        assert await eventually(ask, within=20) is ROLLED_BACK


async def test_a_decision_without_an_answer_is_unknown(amqp_url, database_url, engine, broker: Broker, caplog):
    """Where no coordinator is alive a commit returns UNKNOWN in time; the broker has it, and it counts later."""
    async with coordinating(database_url, amqp_url):
        pass
    async with HalfProducer(amqp_url, group="shop", answer_within=0.2) as half:
        message = order()
        with caplog.at_level(logging.WARNING, logger="relmsg"):
            async with half.begin(message) as tx:
                pass
        assert tx.state is HalfState.UNKNOWN
        assert f"half message {message.id}: no coordinator has answered to the commit" in caplog.text

        async def both_are_kept() -> None:
            assert await broker.count(COORDINATOR) == 2

        await eventually(both_are_kept)
        async with coordinating(database_url, amqp_url):
            await becomes(engine, message.id, COMMITTED)

            async def answered() -> None:
                assert await tx.commit() is COMMITTED

            await eventually(answered)
    assert [row.message_id for row in await outbox_rows(engine)] == [message.id]


async def test_an_unconfirmed_decision_is_unknown(coordinator, amqp_url, engine, caplog):
    """A commit that the broker did not confirm is UNKNOWN with a log line, and no error: the check-back decides."""
    async with Proxy.before(amqp_url) as proxy, HalfProducer(proxy.through(amqp_url), group="shop", deadline=1) as half:
        with caplog.at_level(logging.WARNING, logger="relmsg"):
            async with half.begin(order()) as tx:
                await proxy.refuse()
                proxy.reset()
        assert tx.state is HalfState.UNKNOWN
        assert f"half message {tx.half_id}: the commit is not confirmed" in caplog.text
        await proxy.accept()

        async def answered() -> None:
            assert await tx.commit() is COMMITTED

        await eventually(answered, within=30)
    assert [row.message_id for row in await outbox_rows(engine)] == [tx.half_id]


async def test_answers_come_again_after_the_connections_were_lost(coordinator, amqp_url):
    """The private queue goes with its connection; the next one has a new queue, and commits are answered again."""
    async with Proxy.before(amqp_url) as proxy, HalfProducer(proxy.through(amqp_url), group="shop") as half:
        async with half.begin(order()) as tx:
            pass
        assert tx.state is COMMITTED
        proxy.reset()

        async def answered() -> None:
            try:
                async with half.begin(order()) as tx:
                    pass
            except (BrokerAway, Unknown) as error:
                raise AssertionError from error
            assert tx.state is COMMITTED

        await eventually(answered, within=30)


async def test_an_unknown_id_is_told(half, engine):
    """A decision by an id that nobody has prepared raises HalfUnknown, and no row is made of it."""
    for decide in (half.commit, half.rollback):
        message_id = uuid4()
        with pytest.raises(HalfUnknown, match=str(message_id)):
            await decide(message_id)
        assert await half_row(engine, message_id) is None
    with pytest.raises(PropertyRefused, match="is not a UUID"):
        await half.commit("order-7")


async def test_only_its_group_may_decide(half, engine, amqp_url):
    """Another group's commit and rollback are refused by name, and the half message stays as it is."""
    message = await left_open(half)
    async with HalfProducer(amqp_url, group="thieves") as other:
        for decide in (other.commit, other.rollback):
            with pytest.raises(HalfOfAnotherGroup, match="another group"):
                await decide(message.id)
        with pytest.raises(HalfOfAnotherGroup):
            async with other.begin(order(id=message.id)):
                pass
        assert (await half_row(engine, message.id)).state == "PREPARED"
        assert await outbox_rows(engine) == []
        assert await half.commit(message.id) is COMMITTED


async def test_only_its_login_may_decide(services, half, engine, amqp_url):
    """H11: a decision under another login is refused, though it names the group; the broker vouches for the login."""
    virtual_host = urlsplit(amqp_url).path[1:]
    services.rabbitmqctl("add_user", "mallory", "secret")
    services.rabbitmqctl("set_permissions", "-p", virtual_host, "mallory", ".*", ".*", ".*")
    try:
        host = urlsplit(amqp_url).netloc.rpartition("@")[2]
        stranger = urlsplit(amqp_url)._replace(netloc=f"mallory:secret@{host}").geturl()
        message = await left_open(half)
        async with HalfProducer(stranger, group="shop") as other:
            with pytest.raises(HalfOfAnotherGroup, match="another user"):
                await other.commit(message.id)
        async with HalfProducer(stranger, group="shop", identify=False) as other:
            with pytest.raises(HalfOfAnotherGroup, match="another user"):
                await other.rollback(message.id)
        row = await half_row(engine, message.id)
        assert (row.state, row.user_id) == ("PREPARED", urlsplit(amqp_url).username)
    finally:
        services.rabbitmqctl("delete_user", "mallory")


async def test_prepared_again_it_is_the_same_half_message(half, engine):
    """A retried request with the same id finds the decision of the first one, and sends nothing twice."""
    message_id = Message.id_for("order-7-placed")
    for _ in range(2):
        async with half.begin(order(id=str(message_id))) as tx:
            pass
        assert tx.state is COMMITTED
    assert [row.message_id for row in await outbox_rows(engine)] == [message_id]


async def test_an_expiration_counts_from_the_commit(half, engine):
    """The time that the local work takes is not taken from the message's own."""
    async with half.begin(order(expiration=60)):
        pass
    (row,) = await outbox_rows(engine)
    assert timedelta(seconds=59) < row.expires_at - row.created_at <= timedelta(seconds=60)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"body": b"x" * 1001}, BodyTooLarge),
        ({"headers": {"relmsg-half": "commit"}}, HeaderNameRefused),
        ({"id": "order-7"}, PropertyRefused),
    ],
)
async def test_a_message_that_can_never_be_sent_is_refused_before_anything(amqp_url, broker: Broker, given, error):
    """A message that breaks a rule is refused by the rule's name; nothing is published, the block not entered."""
    await broker.queue(COORDINATOR)
    async with HalfProducer(amqp_url, group="shop", max_body_bytes=1000) as half:
        with pytest.raises(error):
            async with half.begin(order(**given)):
                pytest.fail("entered")
    assert await broker.count(COORDINATOR) == 0


@pytest.mark.parametrize(
    "given", [{"check_after": -1}, {"check_every": 0}, {"check_every": "soon"}, {"max_checks": 0}, {"max_checks": True}]
)
async def test_terms_that_cannot_be_are_refused_before_anything(amqp_url, broker: Broker, given):
    """A time or a count of checks that cannot be is a UsageError, and nothing is published."""
    await broker.queue(COORDINATOR)
    async with HalfProducer(amqp_url, group="shop") as half:
        with pytest.raises(UsageError):
            async with half.begin(order(), **given):
                pytest.fail("entered")
    assert await broker.count(COORDINATOR) == 0


async def test_wrong_use_is_told(amqp_url):
    """What cannot work is refused where it is said: a group, a time, a producer or a transaction not entered."""
    with pytest.raises(GroupRefused):
        HalfProducer(amqp_url, group="")
    with pytest.raises(GroupRefused):
        HalfProducer(amqp_url, group="g" * 129)
    for given in ({"deadline": 0}, {"answer_within": -1}, {"checker_timeout": 0}, {"concurrency": 0}):
        with pytest.raises(UsageError, match=next(iter(given))):
            HalfProducer(amqp_url, group="shop", **given)
    half = HalfProducer(amqp_url, group="shop")
    with pytest.raises(UsageError, match="not connected"):
        half.begin(order())
    with pytest.raises(UsageError, match="not connected"):
        await half.commit(uuid4())

    @half.checker("order.placed")
    async def check(half_message):
        return Resolution.UNKNOWN

    with pytest.raises(CheckerRefused, match="has a checker already"):
        half.checker("order.placed")(check)
    async with half:
        with pytest.raises(UsageError, match="nothing to decide"):
            await half.begin(order()).commit()
        with pytest.raises(UsageError, match="entered once"):
            await half.__aenter__()
    with pytest.raises(UsageError, match="entered once"):
        await half.__aenter__()


async def test_a_transaction_is_entered_once(half):
    """The object that begin returns prepares one half message, once."""
    tx = half.begin(order())
    async with tx:
        pass
    with pytest.raises(UsageError, match="prepared once"):
        await tx.__aenter__()


async def test_send_in_transaction_does_what_the_local_work_says(half, engine):
    """COMMIT commits, ROLLBACK rolls back, and whatever else comes back leaves it to the check-back."""

    async def says(word):
        async def work(tx):
            assert (await becomes(engine, tx.half_id, PREPARED)).state == "PREPARED"
            return word

        return await half.send_in_transaction(order(), work)

    assert await says(Resolution.COMMIT) is COMMITTED
    assert await says(Resolution.ROLLBACK) is ROLLED_BACK
    for word in (Resolution.UNKNOWN, None, True, "COMMIT"):
        assert await says(word) is HalfState.UNKNOWN
    assert await half.send_in_transaction(order(), lambda tx: tx.commit()) is COMMITTED
    assert await half.send_in_transaction(order(), lambda _: Resolution.COMMIT) is COMMITTED
    assert len(await outbox_rows(engine)) == 3


async def test_send_in_transaction_raises_what_the_local_work_raises(half, engine):
    """An exception of the local work is raised, and the half message is left to the check-back."""
    message = order()

    async def work(tx):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await half.send_in_transaction(message, work)
    assert (await half_row(engine, message.id)).state == "PREPARED"

    async def late(tx):
        await half.rollback(tx.half_id)
        return Resolution.COMMIT

    with pytest.raises(HalfRolledBack):
        await half.send_in_transaction(order(), late)


async def test_one_trace_through_prepare_commit_and_send(half, engine, amqp_url, broker: Broker):
    """Prepare, commit and the row in the outbox carry the trace in which the local work is done."""
    seen = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(seen)):
        async with half.begin(order()) as tx:
            assert trace.get_current_span().get_span_context().trace_id == 0xABC
    assert tx.state is COMMITTED
    (row,) = await outbox_rows(engine)
    assert row.headers["traceparent"].split("-")[1] == f"{0xABC:032x}"


async def test_the_protocol_says_who_speaks(amqp_url, broker: Broker):
    """Prepare and commit are persistent, name the group, and carry the login that RabbitMQ vouches for."""
    await broker.queue(COORDINATOR)
    user = urlsplit(amqp_url).username
    for identify in (True, False):
        async with HalfProducer(amqp_url, group="shop", answer_within=0.05, identify=identify) as half:
            message = order(expiration=1.5)
            async with half.begin(message, check_after=2, check_every=timedelta(seconds=3), max_checks=4):
                pass
        prepare, commit = await broker.drain(COORDINATOR)
        for said in (prepare, commit):
            assert said.properties.user_id == (user if identify else None)
            assert said.properties.delivery_mode == 2
            assert said.headers["relmsg-half-group"] == "shop"
        assert prepare.message_id == str(message.id)
        assert prepare.properties.expiration is None, "the broker would drop the half message itself"
        assert {name: value for name, value in prepare.headers.items() if name != "relmsg-half-group"} == {
            "relmsg-half": "prepare",
            "relmsg-half-exchange": "",
            "relmsg-half-routing-key": "orders",
            "relmsg-half-expires-in": 1500,
            "relmsg-half-check-after": 2000,
            "relmsg-half-check-every": 3000,
            "relmsg-half-max-checks": 4,
        }
        assert commit.message_id != str(message.id)
        assert commit.properties.correlation_id == commit.message_id
        assert commit.properties.reply_to
        assert (commit.headers["relmsg-half"], commit.headers["relmsg-half-id"]) == ("commit", str(message.id))
        assert commit.headers["relmsg-half-is-prepared"] is True


async def test_without_a_checker_nobody_takes_checks(amqp_url, broker: Broker):
    """A producer consumes its group's queue from its first checker on, registered before or after it was entered."""
    queue = checks_of("shop").name
    async with HalfProducer(amqp_url, group="shop") as silent, HalfProducer(amqp_url, group="shop") as half:
        assert not await broker.exists(queue)

        @half.checker("order.placed")
        async def check(half_message):
            return Resolution.UNKNOWN

        async def consumed() -> None:
            assert half.is_checking
            assert await broker.consumers(queue) == 1

        await eventually(consumed)
        assert not silent.is_checking
        early = HalfProducer(amqp_url, group="shop")
        early.checker("*")(check)
        async with early:
            assert early.is_checking
            assert await broker.consumers(queue) == 2
    assert await broker.consumers(queue) == 0


@pytest.mark.parametrize("turns", [0, 3, 10, 20, 30, 40, 60])
async def test_a_producer_may_be_left_while_it_begins_to_take_checks(amqp_url, turns: int):
    """However far the declaring and subscribing has come when the block is left, the producer ends."""
    async with asyncio.timeout(30), HalfProducer(amqp_url, group="hasty") as half:

        @half.checker("order.placed")
        async def check(_: object) -> Resolution:
            return Resolution.UNKNOWN

        for _ in range(turns):
            await asyncio.sleep(0)
