"""A topology in a real broker: declared, compared, and every mismatch explained."""

from __future__ import annotations

import json

import pytest

from compose.local import Services
from relmsg.broker.connection import Connection
from relmsg.broker.declare import check, declare, ensure_error_queue, queue_exists
from relmsg.errors import AccessRefused, BrokerAway, TopologyMismatch, UsageError
from relmsg.testing.eventually import eventually
from relmsg.topology import Binding, Exchange, Queue, Topology

SHOP = Topology(
    exchanges=(Exchange("shop"),), queues=(Queue("billing.orders", bindings=(Binding("shop", routing_key="order.#"),)),)
)
PROGRAM = """
from relmsg.topology import Binding, Exchange, Queue, Topology
topology = Topology(
    exchanges=(Exchange("shop"),), queues=(Queue("billing.orders", bindings=(Binding("shop", routing_key="order.#"),)),)
)
"""


@pytest.fixture
async def connection(amqp_url):
    async with Connection([amqp_url]) as connection:
        yield connection


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


async def test_declaring_twice_changes_nothing(connection, broker):
    """After declare the topology works, a second time changes nothing, and check finds no difference."""
    await declare(connection, SHOP)
    await broker.publish(b"x", exchange="shop", routing_key="order.placed")
    await declare(connection, SHOP)
    assert await broker.count("billing.orders") == 1
    assert (await check(connection, SHOP)).lines == ()


async def test_a_rejected_message_reaches_the_error_queue(connection, broker):
    """What a consumer rejects is dead-lettered into the error queue that the topology brought along."""
    await declare(connection, SHOP)
    await broker.publish(b"x", exchange="shop", routing_key="order.placed")
    async with broker.channel() as channel:
        got = await channel.basic_get("billing.orders")
        await channel.basic_reject(got.delivery_tag, requeue=False)
    assert await eventually_count(broker, "billing.orders.errors", 1)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Queue("q", delivery_limit=5), "queue 'q': x-delivery-limit is 20, asked for 5;"),
        (Queue("q", overflow=None), "x-overflow is 'reject-publish', asked for not set"),
        (
            Queue("q", dead_letter_exchange="mine"),
            "queue 'q': x-dead-letter-exchange is 'relmsg.errors', asked for 'mine';",
        ),
        (Queue("q", dead_letter_routing_key="k"), "x-dead-letter-routing-key is 'q.errors', asked for 'k';"),
        (Queue("q", arguments={"x-max-length": 7}), "queue 'q': x-max-length is not set, asked for 7;"),
        (Queue("q", type="classic"), "queue 'q': x-queue-type is 'quorum', asked for 'classic';"),
    ],
)
async def test_each_mismatch_of_a_queue_is_explained(connection, asked, told):
    """The error names the queue, the argument, what is there, what was asked for, and what to do, on one line."""
    await declare(connection, Topology(queues=(Queue("q"),)))
    with pytest.raises(TopologyMismatch) as raised:
        await declare(connection, Topology(queues=(asked,)))
    assert told in str(raised.value)
    assert str(raised.value).endswith("; delete the queue or ask for what is there")
    assert "\n" not in str(raised.value)


async def test_a_queue_declared_by_others_as_classic_is_explained_first_by_its_type(connection, broker):
    """A classic queue without a type has none for RabbitMQ 3; it is told as classic, before what follows from it."""
    await broker.queue("q")
    with pytest.raises(TopologyMismatch, match=r"^queue 'q': x-queue-type is 'classic', asked for 'quorum'; "):
        await declare(connection, Topology(queues=(Queue("q"),)))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Exchange("x", type="direct"), "exchange 'x': type is 'topic', asked for 'direct';"),
        (Exchange("x", durable=False), "exchange 'x': durable is true, asked for false;"),
        (Exchange("x", internal=True), "exchange 'x': internal is false, asked for true;"),
        (Exchange("x", arguments={"alternate-exchange": "y"}), "x': alternate-exchange is not set, asked for 'y';"),
    ],
)
async def test_each_mismatch_of_an_exchange_is_explained(connection, asked, told):
    """The error names the exchange, what differs, what is there and what was asked for."""
    await declare(connection, Topology((Exchange("x"),)))
    with pytest.raises(TopologyMismatch) as raised:
        await declare(connection, Topology((asked,)))
    assert told in str(raised.value)


async def test_a_mismatch_under_a_long_name_is_still_told(connection, broker):
    """RabbitMQ cuts its answer after 255 bytes: the argument and what was asked for are told all the same."""
    name = await broker.queue("q" * 200)
    with pytest.raises(TopologyMismatch, match=r"is not '.*', as asked for"):
        await declare(connection, Topology(queues=(Queue(name),)))


async def test_a_binding_without_its_ends_is_explained(connection):
    """A binding to an exchange or queue that nobody has declared names it."""
    await declare(connection, Topology(queues=(Queue("q"),)))
    with pytest.raises(TopologyMismatch, match=r"no exchange 'theirs' in vhost .*; declare it first"):
        await declare(connection, Topology(bindings=(Binding("theirs", "q"),)))
    with pytest.raises(TopologyMismatch, match=r"no queue 'theirs' in vhost .*; declare it first"):
        await declare(connection, Topology(bindings=(Binding("relmsg.errors", "theirs"),)))


async def test_what_the_broker_does_not_know_is_wrong_use(connection):
    """An argument that the queue type lacks, or an exchange type without its plugin, is the caller's fault."""
    with pytest.raises(UsageError, match="refuses it: invalid arg 'x-max-priority'"):
        await declare(connection, Topology(queues=(Queue("q", arguments={"x-max-priority": 3}),)))
    with pytest.raises(UsageError, match="unknown exchange type 'x-bogus'; is its plugin enabled"):
        await declare(connection, Topology((Exchange("x", type="x-bogus"),)))


async def test_check_tells_all_differences_and_changes_nothing(connection, broker, services):
    """Each thing missing and each argument that differs is a line; the broker is the same before and after."""
    await declare(connection, Topology((Exchange("shop"),), (Queue("q", delivery_limit=5, overflow=None),)))
    await broker.delete_queue("q.errors")
    before = state(services, connection)
    asked = Topology((Exchange("shop", type="direct", internal=True), Exchange("new")), (Queue("q"), Queue("r")))
    found = await check(connection, asked)
    assert set(found.lines) == {
        "exchange 'shop': type is 'topic', asked for 'direct'",
        "exchange 'shop': internal is false, asked for true",
        "exchange 'new' is missing",
        "queue 'q': x-delivery-limit is 5, asked for 20",
        "queue 'q': x-overflow is not set, asked for 'reject-publish'",
        "queue 'q': x-dead-letter-strategy is not set, asked for 'at-least-once'",
        "queue 'r' is missing",
        "queue 'q.errors' is missing",
        "queue 'r.errors' is missing",
    }
    assert len(found.unchecked) == 2
    assert "exchange 'relmsg.errors' with routing key 'q.errors'" in found.unchecked[0]
    assert state(services, connection) == before
    assert not await broker.exists("r")


async def test_bindings_are_checked_through_the_management_api(managed):
    """With a management URL each missing binding is a line, by its routing key and arguments too."""
    async with Connection([managed.amqp_url]) as connection:
        await declare(connection, SHOP)
        found = await check(connection, SHOP, managed.management_url)
        assert (found.lines, found.unchecked) == ((), ())
        more = Topology(
            (Exchange("shop"),),
            SHOP.queues,
            (Binding("shop", "billing.orders", "order.%2F/#"), Binding("shop", "billing.orders", "order.#", {"a": 1})),
        )
        lines = (await check(connection, more, managed.management_url)).lines
        assert [line.endswith("is missing") for line in lines] == [True, True]
        await declare(connection, more)
        assert (await check(connection, more, managed.management_url)).lines == ()


async def test_a_management_api_that_cannot_be_used_is_explained(managed):
    """A wrong password is a refusal, a closed port is away, and neither text shows the password."""
    async with Connection([managed.amqp_url]) as connection:
        await declare(connection, SHOP)
        host = managed.management_url.rpartition("@")[2]
        with pytest.raises(AccessRefused, match="RELMSG_MANAGEMENT_URL") as refused:
            await check(connection, SHOP, f"http://relmsg:ge-heim@{host}")
        with pytest.raises(BrokerAway, match=r"management API at 127.0.0.1:1 is away") as away:
            await check(connection, SHOP, "http://relmsg:ge-heim@127.0.0.1:1")
        assert "ge-heim" not in f"{refused.value} {away.value}"


async def test_an_error_queue_is_ensured_where_it_is_missing(connection, broker):
    """The error exchange leads into the error queue after it, and a second call changes nothing."""
    await ensure_error_queue(connection, "q")
    await ensure_error_queue(connection, "q")
    await broker.publish(b"x", exchange="relmsg.errors", routing_key="q.errors")
    assert await broker.count("q.errors") == 1
    assert await queue_exists(connection, "q.errors")
    assert not await queue_exists(connection, "q")


async def test_an_error_queue_of_others_is_taken_as_it_is(connection, broker):
    """An error queue and an exchange with other arguments are bound to each other and otherwise left alone."""
    await broker.queue("q.errors", arguments={"x-max-length": 9})
    await broker.exchange("mine", "topic")
    await ensure_error_queue(connection, "q", "mine")
    await broker.publish(b"x", exchange="mine", routing_key="q.errors")
    assert await broker.count("q.errors") == 1


async def test_the_verbs_declare_and_check(processes, broker, tmp_path, monkeypatch):
    """declare then check end with 0; a difference is a line and exit code 1; what was not checked is told on stderr."""
    (tmp_path / "shop_topology.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    first = await processes.relmsg("topology", "check", "shop_topology:topology")
    assert await first.wait() == 1
    assert "queue 'billing.orders' is missing\n" in first.out
    for _ in range(2):
        declared = await processes.relmsg("topology", "declare", "shop_topology:topology")
        assert await declared.wait() == 0, declared.stderr
        assert declared.stdout == "shop_topology:topology is declared: exchanges 2, queues 2, bindings 2\n"
    again = await processes.relmsg("topology", "check", "shop_topology:topology", "--json")
    assert await again.wait() == 0
    assert json.loads(again.stdout) == []
    assert len(again.err) == 2
    assert all("not checked" in line for line in again.err)


async def test_the_verbs_explain_what_is_wrong_in_one_line(processes, broker, tmp_path, monkeypatch):
    """A mismatch is 1, a target that is not there 2, a broker that is away 3: each is one line, never a traceback."""
    (tmp_path / "shop_topology.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    await broker.queue("billing.orders")
    closed = "amqp://guest:ge-heim@127.0.0.1:1/"
    for target, variables, code, told in [
        ("shop_topology:topology", {}, 1, "relmsg: queue 'billing.orders': x-queue-type is 'classic'"),
        ("shop_topology:topologi", {}, 2, "did you mean topology?"),
        ("shop_topology:topology", {"RELMSG_AMQP_URL": closed}, 3, "RabbitMQ at 127.0.0.1:1 is away"),
    ]:
        process = await processes.relmsg("topology", "declare", target, **variables)
        assert await process.wait() == code, process.stderr
        assert len(process.err) == 1
        assert told in process.stderr
        assert "ge-heim" not in process.stderr


def state(services, connection):
    """What the broker has in the virtual host of a connection, as rabbitmqctl tells it."""
    if not services.controlled:
        return None
    vhost = connection._urls[0].path[1:]
    return [
        services.rabbitmqctl("list_queues", "-q", "-p", vhost, "name", "arguments"),
        services.rabbitmqctl("list_exchanges", "-q", "-p", vhost, "name", "type", "durable", "internal", "arguments"),
        services.rabbitmqctl("list_bindings", "-q", "-p", vhost),
    ]


async def eventually_count(broker, queue, expected):
    async def arrived():
        assert await broker.count(queue) == expected
        return True

    return await eventually(arrived)


async def test_declare_tells_all_that_differs_at_once(connection, broker):
    """Whoever mends the first mismatch has seen the others; what does not differ is declared all the same."""
    await broker.exchange("shop", "fanout")
    await broker.queue("one", arguments={"x-queue-type": "classic"})
    await broker.queue("two", arguments={"x-queue-type": "classic"})
    topology = Topology(
        [Exchange("shop")], [Queue("one"), Queue("two"), Queue("fine")], [Binding("not.there", "fine", "k")]
    )
    with pytest.raises(TopologyMismatch) as told:
        await declare(connection, topology)
    text = str(told.value)
    assert text.startswith("4 things differ: ")
    assert all(each in text for each in ("exchange 'shop'", "queue 'one'", "queue 'two'", "exchange 'not.there'"))
    assert "\n" not in text
    assert await broker.exists("fine")
