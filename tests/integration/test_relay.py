"""The relay on a real PostgreSQL and a real RabbitMQ."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.errors import AccessRefused, BrokerAway, DatabaseAway, SchemaError
from relmsg.outbox.backlog import Backlog
from relmsg.outbox.driver import Driver
from relmsg.outbox.relay import Relay
from relmsg.outbox.store import OutboxStore
from relmsg.schema import SLOTS
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.databases import Databases
from tests.support.proxy import Proxy
from tests.support.relaying import emptied, relaying, waiting

Sessions = async_sessionmaker[AsyncSession]
OUTBOX = Outbox("orders")


async def commit(sessions: Sessions, *messages: Message) -> None:
    async with sessions() as session, session.begin():
        await OUTBOX.publish_many(session, messages)


def to(queue: str, body: str = "x", **given: Any) -> Message:
    return Message(**{"type": "t", "body": body, "routing_key": queue, **given})


async def sql(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


async def reason(engine: AsyncEngine, condition: str = "true") -> str | None:
    async with engine.connect() as connection:
        found = await connection.scalar(text(f"SELECT last_error FROM relmsg.outbox_message WHERE {condition}"))
    return None if found is None else str(found)


async def test_what_is_committed_arrives_once_and_complete(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Every committed message is in the queue with its properties, and the outbox is empty."""
    await broker.queue("q")
    messages = [to("q", str(n), headers={"n": n}, ordering_key=str(n % 7)) for n in range(2000)]
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, *messages)
        await emptied(engine)
        assert relay.ready() is None
    got = await broker.drain("q")
    assert Counter(each.message_id for each in got) == Counter(str(message.id) for message in messages)
    assert {(each.message_id, each.body, each.headers["n"]) for each in got} == {
        (str(message.id), str(n).encode(), n) for n, message in enumerate(messages)
    }
    assert {each.properties.app_id for each in got} == {"orders"}
    assert {each.properties.delivery_mode for each in got} == {2}
    assert {each.headers["relmsg-key"] for each in got} == {str(n) for n in range(7)}
    assert all(each.properties.timestamp is not None for each in got)


async def test_one_key_leaves_in_the_order_of_its_rows(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """The messages of each key stand in the queue in the order they were published."""
    await broker.queue("q")
    await commit(sessions, *(to("q", str(n), ordering_key=f"key {n % 5}") for n in range(500)))
    async with relaying(database_url, amqp_url):
        await emptied(engine)
    got = await broker.drain("q")
    for key in range(5):
        sent = [int(each.body) for each in got if each.headers["relmsg-key"] == f"key {key}"]
        assert sent == list(range(key, 500, 5))


async def test_a_late_commit_with_a_small_id_is_sent(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """D1: a row whose transaction commits after rows with larger ids were sent is not lost."""
    await broker.queue("q")
    async with relaying(database_url, amqp_url):
        async with sessions() as slow, slow.begin():
            await OUTBOX.publish(slow, to("q", "late"))
            await commit(sessions, *(to("q", f"early {n}") for n in range(200)))

            async def early() -> None:
                assert await broker.count("q") == 200

            await eventually(early)
        await emptied(engine, within=5)
    assert sum(each.body == b"late" for each in await broker.drain("q")) == 1


async def test_a_message_without_a_route_waits_and_the_others_go_on(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """P1, P23: a returned row stays with its reason, costs no attempt, and leaves by itself once the route exists."""
    await broker.exchange("shop")
    await broker.queue("q")
    lost = to("nowhere", exchange="shop")
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, lost, *(to("q") for _ in range(300)))

        async def others_are_through() -> None:
            assert await waiting(engine) == 1

        await eventually(others_are_through)
        assert "NO_ROUTE" in (await reason(engine) or "")
        status = await Backlog(engine).status()
        assert [(held["exchange"], held["routing_key"], held["messages"]) for held in status["held"]] == [
            ("shop", "nowhere", 1)
        ]
        await broker.queue("found", exchange="shop", routing_key="nowhere")
        await emptied(engine)
        assert relay.metrics.receipts.labels("returned")._value.get() >= 1
    (got,) = await broker.drain("found")
    assert got.message_id == str(lost.id)


async def test_a_missing_exchange_takes_nobody_along(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """P5: the neighbours of a row for a missing exchange all arrive, are not counted against, and nothing is parked."""
    await broker.queue("q")
    neighbours = [to("q", str(n)) for n in range(400)]
    lost = to("k", exchange="missing")
    async with relaying(database_url, amqp_url):
        await commit(sessions, *neighbours[:200], lost, *neighbours[200:])

        async def neighbours_are_through() -> None:
            assert await waiting(engine) == 1

        await eventually(neighbours_are_through)
        assert "no exchange 'missing'" in (await reason(engine) or "")
        assert await waiting(engine, parked=True) == 0
        await broker.exchange("missing")
        await broker.queue("late", exchange="missing", routing_key="k")
        await emptied(engine)
    assert {each.message_id for each in await broker.drain("q")} == {str(message.id) for message in neighbours}
    assert [each.message_id for each in await broker.drain("late")] == [str(lost.id)]


async def test_a_full_queue_is_waited_for(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Nacked rows stay and are sent when there is room; other destinations go on meanwhile."""
    await broker.queue("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await broker.queue("q")
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, *(to("full", str(n)) for n in range(3)))

        async def nacked() -> None:
            assert relay.metrics.receipts.labels("nacked")._value.get() >= 1

        await eventually(nacked)
        await commit(sessions, *(to("q") for _ in range(50)))

        async def others() -> None:
            assert await broker.count("q") == 50

        await eventually(others)
        got: list[str | None] = []

        async def taken() -> None:
            got.extend(each.message_id for each in await broker.drain("full"))
            assert len(set(got)) == 3

        await eventually(taken, within=30)
        await emptied(engine)


async def test_a_key_waits_behind_its_held_row(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """A row that cannot go yet is not overtaken by a later row of its key, whatever that one's destination."""
    await broker.exchange("shop")
    await broker.queue("q", exchange="shop", routing_key="b")
    first, second = to("a", "1", exchange="shop", ordering_key="k"), to("b", "2", exchange="shop", ordering_key="k")
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, first)

        async def held() -> None:
            assert relay.metrics.receipts.labels("returned")._value.get() >= 1

        await eventually(held)
        await commit(sessions, second, to("b", "other", exchange="shop"))

        async def only_the_other_is_through() -> None:
            assert (await broker.count("q"), await waiting(engine)) == (1, 2)

        await eventually(only_the_other_is_through)
        async with broker.channel() as channel:
            await channel.queue_bind("q", "shop", "a")
        await emptied(engine)
    assert [each.body for each in await broker.drain("q")] == [b"other", b"1", b"2"]


MALFORMED = {
    "a CC header": "headers) VALUES ('', 'q', 'x', '{\"CC\": [\"other\"]}')",
    "headers that are no object": "headers) VALUES ('', 'q', 'x', '[1]')",
    "a float in the headers": "headers) VALUES ('', 'q', 'x', '{\"price\": 1.5}')",
    "a number over 64 bits": "headers) VALUES ('', 'q', 'x', '{\"n\": 9223372036854775808}')",
    "a number of 5000 digits": "headers) VALUES ('', 'q', 'x', ('{\"n\":' || repeat('1', 5000) || '}')::jsonb)",
    "lists 5000 deep": "headers) VALUES ('', 'q', 'x', ('[' || repeat('[', 5000) || repeat(']', 5000) || ']')::jsonb)",
    "a routing key of 300 bytes": "type) VALUES ('', repeat('k', 300), 'x', 't')",
    "an exchange of 300 bytes": "type) VALUES (repeat('e', 300), 'q', 'x', 't')",
    "a type of 300 bytes": "type) VALUES ('', 'q', 'x', repeat('t', 300))",
    "a body over the cap": "type) VALUES ('', 'q', convert_to(repeat('x', 1048577), 'UTF8'), 't')",
    "a time that has passed": "expires_at) VALUES ('', 'q', 'x', now() - interval '1 minute')",
    "a time that never passes": "expires_at) VALUES ('', 'q', 'x', 'infinity')",
    "a time that always had passed": "expires_at) VALUES ('', 'q', 'x', '-infinity')",
    "a time after all times": "occurred_at) VALUES ('', 'q', 'x', 'infinity')",
    "a time before all times": "occurred_at) VALUES ('', 'q', 'x', '-infinity')",
    "a time that Python does not know": "occurred_at) VALUES ('', 'q', 'x', '4000-01-01 BC')",
    "a birth before all times": "created_at) VALUES ('', 'q', 'x', '-infinity')",
    "a key of 20 KiB": "ordering_key) VALUES ('', 'q', 'x', repeat('k', 20480))",
}


async def test_malformed_rows_are_parked_and_block_nobody(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """P6, P7: rows that plain SQL got wrong are set aside, each with its reason, and all others arrive."""
    await broker.queue("q")
    good = [to("q", str(n)) for n in range(200)]
    await commit(sessions, *good[:100])
    for values in MALFORMED.values():
        await sql(
            engine, f"INSERT INTO relmsg.outbox_message (exchange, routing_key, body, {values}".replace(": ", " : ")
        )
    await commit(sessions, *good[100:])
    async with relaying(database_url, amqp_url):
        await emptied(engine)
        rows = await Backlog(engine).rows(parked=True)
    assert len(rows) == len(MALFORMED)
    assert all(row["last_error"].startswith("cannot be sent: ") for row in rows)
    assert {each.message_id for each in await broker.drain("q")} == {str(message.id) for message in good}


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "4000-01-01 BC"])
async def test_a_row_of_any_age_can_be_measured(engine: AsyncEngine, moment: str) -> None:
    """Neither the relay's measuring nor `relmsg outbox status` ends at a time that PostgreSQL cannot subtract."""
    await sql(
        engine,
        "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, created_at) "
        f"VALUES ('', 'q', 'x', '{moment}')",
    )
    driver = Driver(engine)
    age = await OutboxStore(driver, driver, driver, schema="relmsg").oldest(range(SLOTS))
    await driver.close()
    status = await Backlog(engine).status()
    assert status["waiting"] == 1
    assert (age == 0) == (status["oldest_seconds"] < 0) == (moment == "infinity")


async def test_a_parked_row_comes_back_by_retry(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """After its cause is mended, retry brings a parked row back under the same message id."""
    await broker.queue("q")
    async with relaying(database_url, amqp_url):
        await sql(
            engine,
            "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, type) "
            "VALUES ('', 'q', 'x', repeat('t', 300))",
        )

        async def parked() -> Any:
            rows = await Backlog(engine).rows(parked=True)
            assert rows
            return rows[0]

        row = await eventually(parked)
        await sql(engine, "UPDATE relmsg.outbox_message SET type = 't'")
        assert await Backlog(engine).retry([str(row["message_id"])]) == 1
        await emptied(engine)
    assert [each.message_id for each in await broker.drain("q")] == [str(row["message_id"])]


async def test_two_rows_of_one_message_id_keep_their_own_verdicts(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """P2: of two rows with one id, the routed one is deleted and the unroutable one stays."""
    await broker.queue("q")
    shared = Message.id_for("one")
    async with relaying(database_url, amqp_url):
        await commit(sessions, to("q", "routed", id=shared), to("nowhere", "lost", id=shared))

        async def one_left() -> None:
            assert await waiting(engine) == 1

        await eventually(one_left)
        assert "NO_ROUTE" in (await reason(engine) or "")
    assert [each.body for each in await broker.drain("q")] == [b"routed"]


async def test_two_relays_share_the_slots_without_double_work(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """With two relays each owns half of the slots, and no message is sent twice, also while they share out."""
    await broker.queue("q")
    fast = {"lease": 3.0, "renew": 1.0}
    messages = [to("q", str(n), ordering_key=str(n % 50)) for n in range(3000)]
    async with relaying(database_url, amqp_url, relay_name="one", **fast):
        await commit(sessions, *messages[:1000])
        async with relaying(database_url, amqp_url, relay_name="two", **fast):
            await commit(sessions, *messages[1000:2000])

            async def shared() -> None:
                relays = (await Backlog(engine).status())["relays"]
                shares = [(each["relay"].split("/")[0], each["slots"]) for each in relays]
                assert shares == [("one", 32), ("two", 32)]

            await eventually(shared, within=15)
            await commit(sessions, *messages[2000:])
            await emptied(engine)
        assert [each["relay"].split("/")[0] for each in (await Backlog(engine).status())["relays"]] == ["one"]
    got = Counter(each.message_id for each in await broker.drain("q"))
    assert got == Counter(str(message.id) for message in messages)


async def test_two_relays_of_one_name_are_two_relays(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Replicas that were all told the same name share the slots like any others, and send nothing twice."""
    await broker.queue("q")
    alike = {"lease": 3.0, "renew": 1.0, "relay_name": "replica"}
    async with relaying(database_url, amqp_url, **alike), relaying(database_url, amqp_url, **alike):

        async def shared() -> None:
            assert [each["slots"] for each in (await Backlog(engine).status())["relays"]] == [32, 32]

        await eventually(shared, within=15)
        for start in range(0, 1000, 100):
            await commit(sessions, *(to("q", str(n), ordering_key=str(n % 10)) for n in range(start, start + 100)))
        await emptied(engine)
    assert sorted(int(each.body) for each in await broker.drain("q")) == list(range(1000))


async def test_a_lost_connection_costs_nothing(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker, services: Any
) -> None:
    """Connections that the broker closes under load are made again; every message arrives, none is parked."""
    await broker.queue("q")
    messages = [to("q", str(n)) for n in range(4000)]
    async with relaying(database_url, amqp_url):
        for start in range(0, 4000, 1000):
            await commit(sessions, *messages[start : start + 1000])
            vhost = amqp_url.rsplit("/", 1)[1]
            await asyncio.to_thread(services.rabbitmqctl, "close_all_connections", "--vhost", vhost, "test")
        await emptied(engine)
        assert await waiting(engine, parked=True) == 0
    await broker.close()
    assert {each.message_id for each in await broker.drain("q")} == {str(message.id) for message in messages}


async def test_ready_turns_false_when_nothing_gets_through(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """A relay whose broker is away while messages are due says so, and recovers by itself."""
    await broker.queue("q")
    async with (
        Proxy.before(amqp_url) as proxy,
        relaying(database_url, proxy.through(amqp_url), stall_seconds=0.5) as relay,
    ):
        assert relay.ready() is None
        await proxy.refuse()
        proxy.reset()
        await commit(sessions, to("q"))

        async def stalled() -> None:
            assert "1 messages wait and none gets through" in (relay.ready() or "")
            assert "RabbitMQ" in (relay.ready() or "")

        await eventually(stalled, within=20)
        assert relay.live() is None
        await proxy.accept()
        await emptied(engine)

        async def well() -> None:
            assert relay.ready() is None

        await eventually(well, within=20)


async def test_what_waits_for_a_route_is_no_fault_of_the_relay(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """C8: a relay on which nothing but an unroutable message waits is ready; a metric tells of the destination."""
    async with relaying(database_url, amqp_url, stall_seconds=0.2) as relay:
        await commit(sessions, to("nowhere"))

        async def held() -> None:
            assert "NO_ROUTE" in (await reason(engine) or "")
            assert relay.metrics.held._value.get() == 1
            assert relay.metrics.backlog._value.get() == 1

        await eventually(held)
        for _ in range(10):  # for five times as long as a message may take
            await asyncio.sleep(0.1)
            assert relay.ready() is None
        assert relay.live() is None
        await broker.queue("nowhere")
        await emptied(engine)


async def test_what_is_wrong_at_the_start_is_told(database_url: str, amqp_url: str, databases: Databases) -> None:
    """A relay that cannot begin says in one line what is away or refused."""
    wrong = database_url.rsplit("/", 1)[0]
    for given, expected in (
        ({"amqp_url": "amqp://guest:secret@127.0.0.1:1/"}, BrokerAway),
        ({"amqp_url": re.sub(r"://[^@]*@", "://nobody:secret@", amqp_url)}, AccessRefused),
        ({"database_url": "postgresql://u:secret@127.0.0.1:1/x"}, DatabaseAway),
        ({"database_url": f"{wrong}/no_such_database"}, AccessRefused),
        ({"schema": "elsewhere"}, SchemaError),
    ):
        settings = Settings(**{"database_url": database_url, "amqp_url": amqp_url, "probes": "", **given})
        with pytest.raises(expected) as told:
            await Relay(settings).run(asyncio.Event())
        assert "secret" not in str(told.value)
        assert "\n" not in str(told.value)


async def test_an_alarm_of_the_broker_is_waited_out(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker, services: Any
) -> None:
    """P9: while the broker blocks publishing the relay feeds it nothing more, and goes on when the alarm is over."""
    await broker.queue("q")
    async with relaying(database_url, amqp_url) as relay:
        await commit(sessions, *(to("q", str(n)) for n in range(100)))
        await emptied(engine)
        await asyncio.to_thread(services.rabbitmqctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            blocked, committed = relay._channel._connection, 100

            async def is_blocked() -> None:
                """The broker blocks who publishes during the alarm, and the alarm may begin a moment later."""
                nonlocal committed
                await commit(sessions, *(to("q", str(n)) for n in range(committed, committed + 100)))
                committed += 100
                assert blocked.blocked

            await eventually(is_blocked, within=20, every=0.2)
            before = await waiting(engine)
            await commit(sessions, *(to("q", str(n)) for n in range(committed, committed + 3000)))
            committed += 3000
            assert await waiting(engine) >= before + 3000
        finally:
            await asyncio.to_thread(services.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")
        await emptied(engine)
    got = Counter(int(each.body) for each in await broker.drain("q"))
    assert set(got) == set(range(committed))
    assert max(got.values()) <= 2


async def test_a_failure_while_draining_is_not_a_clean_end(
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    amqp_url: str,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch that fails after the relay was told to stop ends it with that failure, and its rows stay."""
    await broker.queue("q")
    publishing, may_fail = asyncio.Event(), asyncio.Event()

    async def fail(*_: object) -> None:
        publishing.set()
        await may_fail.wait()
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("relmsg.broker.confirm.ConfirmChannel.publish", fail)
    await commit(sessions, to("q"))
    relay, stop = Relay(Settings(database_url=database_url, amqp_url=amqp_url, probes="")), asyncio.Event()
    running = asyncio.create_task(relay.run(stop))
    await asyncio.wait_for(publishing.wait(), timeout=10)
    stop.set()
    asyncio.get_running_loop().call_later(0.2, may_fail.set)
    with pytest.raises(ZeroDivisionError):
        await running
    assert await waiting(engine) == 1
