"""The consumer with groups, on real services: what is shared, and what becomes of it when something goes wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import (
    QUEUE,
    QUICK,
    counted,
    create_effect,
    effect,
    effects,
    place,
    running,
    sample,
    settled,
    unsubscribed,
)
from tests.support.proxy import Proxy


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE hot (id int PRIMARY KEY, n int)"))
        await connection.execute(text("INSERT INTO hot VALUES (0, 0), (1, 0)"))
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture(autouse=True)
async def queue(broker: Broker) -> str:
    return await broker.queue(QUEUE)


@pytest.fixture
def inbox(sessions: async_sessionmaker[AsyncSession]) -> Inbox:
    return Inbox("billing", sessions)


async def scalars(sessions: async_sessionmaker[AsyncSession], query: str) -> list[Any]:
    async with sessions() as session:
        return list(await session.scalars(text(query)))


def groups(inbox: Inbox, outcome: str) -> float:
    return sample(inbox, "relmsg_consumer_groups_total", type="order.placed", outcome=outcome)


async def test_a_bad_message_harms_nobody(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Its group rolls back, it alone spends attempts and ends in the error queue; all other effects are there once."""
    calls: Counter[str] = Counter()
    inbox.concurrency = 1

    @inbox.handler("order.placed", queue=QUEUE, retry=QUICK)
    async def handle(message: Message, session: AsyncSession) -> None:
        calls[str(message.id)] += 1
        await effect(session, message)
        if message.id == "bad":
            raise ValueError("no")

    ids = [str(n) for n in range(120)]
    await place(broker, *ids[:100], "bad", *ids[100:])
    async with running(inbox, amqp_url):
        await settled(inbox, handled=120, failed=1)
    assert sorted(await effects(sessions)) == sorted(ids)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert (copy.message_id, copy.headers["relmsg-error-attempts"]) == ("bad", 3)
    assert groups(inbox, "committed") > 0
    assert groups(inbox, "rolled_back") == calls["bad"] - 3 == 1
    assert max(calls[each] for each in ids) == 2
    assert sample(inbox, "relmsg_consumer_retries_total", type="order.placed") == 2


async def test_every_handler_runs_once_while_all_goes_well(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Handlers are executed again after a rollback only."""
    calls: Counter[str] = Counter()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        calls[str(message.id)] += 1
        await effect(session, message)

    ids = [str(n) for n in range(300)]
    await place(broker, *ids, *ids[:100])
    async with running(inbox, amqp_url):
        await settled(inbox, handled=300, duplicate=100)
    assert set(calls.values()) == {1}
    assert groups(inbox, "rolled_back") == 0
    assert 0 < groups(inbox, "committed") < 300
    assert await broker.count(QUEUE) == 0


async def test_by_option_each_message_has_a_transaction_of_its_own(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """group=1 turns groups off."""

    @inbox.handler("order.placed", queue=QUEUE, group=1)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)

    await place(broker, *map(str, range(60)))
    async with running(inbox, amqp_url):
        await settled(inbox, handled=60)
    assert groups(inbox, "committed") == 0
    assert len(await scalars(sessions, "SELECT DISTINCT xmin::text FROM effect")) == 60


async def test_slow_handlers_run_side_by_side(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """A handler that waits for something else is not grouped: all places are in use, no message waits for another."""
    now = most = 0

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.3)
        now -= 1
        await effect(session, message)

    await place(broker, *map(str, range(48)))
    async with running(inbox, amqp_url):
        await settled(inbox, handled=48)
    assert most == inbox.concurrency
    assert groups(inbox, "committed") == groups(inbox, "rolled_back") == 0


async def test_a_key_keeps_its_order_through_the_failure_of_a_group(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """While the head of a key is retried, alone, what was behind it in the group waits; other keys do not."""
    tries: Counter[str] = Counter()

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=9, base=0.02, cap=0.02))
    async def handle(message: Message, session: AsyncSession) -> None:
        tries[str(message.id)] += 1
        if str(message.id) in ("a30", "b40") and tries[str(message.id)] < 5:
            raise OSError("not yet")
        await effect(session, message)

    for n in range(60):
        for key in ("a", "b", "c"):
            await place(broker, f"{key}{n}", headers={"relmsg-key": key})
    async with running(inbox, amqp_url):
        await settled(inbox, handled=180)
    done = await effects(sessions)
    for key in ("a", "b", "c"):
        assert [each for each in done if each.startswith(key)] == [f"{key}{n}" for n in range(60)]
    assert groups(inbox, "rolled_back") > 0


async def test_rows_over_which_groups_deadlock_are_handled_one_by_one(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Two hot rows, taken in either order: groups that meet fail, become single messages, and all take effect once."""

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=3, base=0.001))
    async def handle(message: Message, session: AsyncSession) -> None:
        await session.execute(text("UPDATE hot SET n = n + 1 WHERE id = :id"), {"id": int(str(message.id)) % 2})
        await effect(session, message)

    await place(broker, *map(str, range(150)))
    async with running(inbox, amqp_url):
        await settled(inbox, handled=150)
    assert await scalars(sessions, "SELECT n FROM hot ORDER BY id") == [75, 75]
    assert len(set(await effects(sessions))) == 150
    assert await broker.count(f"{QUEUE}.errors") == 0


async def test_half_a_group_comes_again(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """The connection is cut while groups are under way: they commit, all comes again, each effect is there once."""
    first, go = asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)
        if message.id == "70":
            first.set()
            await go.wait()

    ids = [str(n) for n in range(150)]
    await place(broker, *ids)
    async with Proxy.before(amqp_url) as proxy, running(inbox, proxy.through(amqp_url)):
        await asyncio.wait_for(first.wait(), 20)
        before = proxy.accepted
        proxy.reset()

        def again() -> None:
            assert proxy.accepted > before
            assert inbox.ready() is None

        await eventually(again, within=20)
        go.set()
        await eventually(lambda: _all_there(inbox, broker), within=30)
    assert sorted(await effects(sessions)) == sorted(ids)
    assert await broker.count(QUEUE) == 0


async def _all_there(inbox: Inbox, broker: Broker) -> None:
    assert await broker.count(QUEUE) == 0
    assert counted(inbox, "handled") == 150
    assert inbox.metrics.registry.get_sample_value("relmsg_consumer_in_flight", {"queue": QUEUE}) == 0


async def test_a_list_handler_finds_the_guilty_one(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """If a list fails its messages come as lists of one; a body that does not decode is never in a list."""
    sizes: list[int] = []

    @inbox.handler("order.placed", queue=QUEUE, retry=QUICK)
    async def store(events: list[dict], messages: list[Message], session: AsyncSession) -> None:  # type: ignore[type-arg]
        sizes.append(len(events))
        assert len(events) == len(messages)
        for message in messages:
            await effect(session, message)
        if "bad" in {str(message.id) for message in messages}:
            raise ValueError("no")

    ids = [str(n) for n in range(90)]
    await place(broker, *ids[:80], "bad")
    await place(broker, "xml", body=b"<xml/>")
    await place(broker, *ids[80:])
    async with running(inbox, amqp_url):
        await settled(inbox, handled=90, failed=2)
    assert sorted(await effects(sessions)) == sorted(ids)
    reasons = {copy.message_id: copy.headers for copy in await broker.drain(f"{QUEUE}.errors")}
    assert reasons["bad"]["relmsg-error-attempts"] == 3
    assert reasons["xml"]["relmsg-error-reason"] == "undecodable"
    assert max(sizes) > 1
    assert sizes.count(1) >= 3


async def test_a_list_handler_that_takes_long_gets_full_groups(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """It is made for one long call: groups grow, where those of other handlers would not."""
    sizes: list[int] = []
    inbox.concurrency = 1

    @inbox.handler("order.placed", queue=QUEUE, group=8)
    async def store(messages: list[Message]) -> None:
        sizes.append(len(messages))
        await asyncio.sleep(0.3)

    await place(broker, *map(str, range(15)))
    async with running(inbox, amqp_url):
        await settled(inbox, handled=15)
    assert sizes == [1, 2, 4, 8]


async def test_two_consumers_with_the_same_messages(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Two processes that got copies of the same messages, in another order, finish and have each effect once."""
    other = Inbox("billing", sessions)
    for each in (inbox, other):
        each.handler("order.placed", queue=QUEUE)(effect)
    ids = [str(n) for n in range(200)]
    await place(broker, *ids, *reversed(ids))

    def all_settled() -> None:
        done = [counted(each, outcome) for each in (inbox, other) for outcome in ("handled", "duplicate")]
        assert sum(done) == 400

    async with running(inbox, amqp_url), running(other, amqp_url):
        await eventually(all_settled, within=30)
    assert sorted(await effects(sessions)) == sorted(ids)


async def test_stopping_in_the_middle_of_a_group_finishes_the_group(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """A drain lets a group commit and ack; what has not begun is in the queue again, and nothing is there twice."""
    begun, go = asyncio.Event(), asyncio.Event()
    inbox.concurrency = 1

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)
        if message.id == "20":
            begun.set()
            await go.wait()

    ids = [str(n) for n in range(150)]
    await place(broker, *ids)
    async with running(inbox, amqp_url) as stop:
        await asyncio.wait_for(begun.wait(), 20)
        stop.set()
        await unsubscribed(broker)
        go.set()
    done = await effects(sessions)
    assert "20" in done
    assert await broker.count(QUEUE) == 150 - len(done)
    assert len(set(done)) == len(done)


async def test_what_a_long_group_left_out_comes_next(
    inbox: Inbox,
    sessions: async_sessionmaker[AsyncSession],
    broker: Broker,
    amqp_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of groups that are closed after their first message the others are handled later: all, once, keys in order."""
    monkeypatch.setattr("relmsg.inbox.group.OVERRUN_SECONDS", -1.0)
    inbox.handler("order.placed", queue=QUEUE)(effect)
    for n in range(25):
        await place(broker, f"a{n}", headers={"relmsg-key": "a"})
        await place(broker, f"b{n}", headers={"relmsg-key": "b"})
        await place(broker, f"{n}")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=75)
    done = await effects(sessions)
    for key in ("a", "b"):
        assert [each for each in done if each.startswith(key)] == [f"{key}{n}" for n in range(25)]
    assert len(set(done)) == len(done) == 75
    assert groups(inbox, "committed") > 0
    assert await broker.count(QUEUE) == 0


async def test_the_broker_hands_over_more_for_a_list_handler(inbox: Inbox, broker: Broker, amqp_url: str) -> None:
    """Ahead of the acks a queue gets 250 messages, or five groups of its list handler."""
    go = asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE, group=52)
    async def store(messages: list[Message]) -> None:
        await go.wait()

    @inbox.handler("order.placed", queue="archive", consumer="archive")
    async def handle(message: Message) -> None:
        await go.wait()

    async def taken() -> None:
        assert (await broker.count(QUEUE), await broker.count("archive")) == (3, 13)

    await broker.exchange("shop", "fanout")
    await broker.queue(QUEUE, exchange="shop")
    await broker.queue("archive", exchange="shop")
    for n in range(263):
        await broker.publish(b"{}", exchange="shop", routing_key="", message_id=str(n), message_type="order.placed")
    async with running(inbox, amqp_url):
        try:
            await eventually(taken)
        finally:
            go.set()


async def test_a_group_that_fails_during_the_drain_comes_again(
    inbox: Inbox, sessions: async_sessionmaker[AsyncSession], broker: Broker, amqp_url: str
) -> None:
    """Its messages are not begun anew one by one: all of them are in the queue again, and none counts as in flight."""
    begun, go = asyncio.Event(), asyncio.Event()
    inbox.concurrency = 1

    @inbox.handler("order.placed", queue=QUEUE)
    async def store(messages: list[Message], session: AsyncSession) -> None:
        for message in messages:
            await effect(session, message)
        if "20" in {message.id for message in messages}:
            begun.set()
            await go.wait()
            raise ValueError("no")

    await place(broker, *map(str, range(60)))
    async with running(inbox, amqp_url) as stop:
        await asyncio.wait_for(begun.wait(), 20)
        stop.set()
        await unsubscribed(broker)
        go.set()
    done = await effects(sessions)
    assert groups(inbox, "rolled_back") == 1
    assert "20" not in done
    assert await broker.count(QUEUE) == 60 - len(done)
    assert inbox.metrics.registry.get_sample_value("relmsg_consumer_in_flight", {"queue": QUEUE}) == 0
