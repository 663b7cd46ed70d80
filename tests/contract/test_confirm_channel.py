"""What the confirm channel promises, held against a real broker: one receipt each, and never another one's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from yarl import URL

from compose.local import Services
from relmsg.broker.confirm import ConfirmChannel, publish_alone
from relmsg.broker.connection import Connection
from relmsg.broker.envelope import seal
from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.broker.tap import Tap
from relmsg.broker.wire import Publication, publication
from relmsg.errors import BrokerAway
from relmsg.message import Message
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Mode, Proxy

FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


def to(routing_key: str, exchange: str = "", *, body: bytes = b"x", message_id: str | None = None) -> Publication:
    return publication(
        seal(Message(id=message_id or str(uuid4()), exchange=exchange, routing_key=routing_key, body=body))
    )


@pytest.fixture(params=[True, False], ids=["bulk", "plain"])
def bulk(request: pytest.FixtureRequest) -> bool:
    """Everything holds for both ways of publishing: past aiormq, and by its basic_publish."""
    return request.param


@pytest.fixture
async def connection(amqp_url: str, bulk: bool) -> AsyncIterator[Connection]:
    async with Connection([amqp_url], name="contract", bulk=bulk) as connection:
        yield connection


@pytest.fixture
async def channel(connection: Connection) -> AsyncIterator[ConfirmChannel]:
    channel = ConfirmChannel(connection, deadline=20)
    yield channel
    await channel.close()


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(amqp_url) as proxy:
        yield proxy


@pytest.fixture
async def through_proxy(proxy: Proxy, amqp_url: str, bulk: bool) -> AsyncIterator[Connection]:
    async with Connection([proxy.through(amqp_url)], name="contract by proxy", bulk=bulk) as connection:
        yield connection
        proxy.heal()


@pytest.fixture(params=["classic", "quorum"])
def kind(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"x-queue-type": request.param}


async def test_a_stored_message_is_confirmed(channel, broker: Broker, kind):
    """Confirmed: the message is in its queue, and the receipts stand in the order of the publishes."""
    await broker.queue("q", arguments=kind)
    publishes = [to("q", body=b"%d" % n) for n in range(50)]
    assert await channel.publish(publishes) == [Confirmed(each.message_id) for each in publishes]
    assert [(got.body, got.message_id) for got in await broker.drain("q")] == [
        (each.body, each.message_id) for each in publishes
    ]
    assert channel.unconfirmed == 0


async def test_an_empty_batch_has_no_receipts(channel):
    """Publishing nothing succeeds with nothing, without a channel."""
    assert await channel.publish([]) == []


async def test_an_unroutable_message_is_returned(channel, broker: Broker):
    """Returned: no queue took it; the receipt names exchange, routing key and the broker's reason."""
    await broker.exchange("e")
    publish = to("nobody", "e")
    (receipt,) = await channel.publish([publish])
    assert isinstance(receipt, Returned)
    assert (receipt.message_id, receipt.exchange, receipt.routing_key) == (publish.message_id, "e", "nobody")
    assert (receipt.reply_code, receipt.reply_text) == (312, "NO_ROUTE")


async def test_a_full_queue_nacks(channel, broker: Broker, kind):
    """Nacked: a queue that rejects what it cannot hold; once there is room the same message is confirmed."""
    await broker.queue("full", arguments=FULL | kind)
    receipts = [(await channel.publish([to("full")]))[0] for _ in range(6)]
    assert isinstance(receipts[0], Confirmed)
    assert isinstance(receipts[-1], Nacked)  # a quorum queue lets a few more in before it says no
    stored = await broker.count("full")
    assert stored == sum(isinstance(receipt, Confirmed) for receipt in receipts)
    await broker.drain("full")
    again = to("full")

    async def confirmed():
        assert await channel.publish([again]) == [Confirmed(again.message_id)]

    await eventually(confirmed)


async def test_one_batch_has_each_its_own_verdict(channel, broker: Broker):
    """Confirmed, returned and nacked messages of one batch keep their verdicts apart."""
    await broker.queue("q")
    await broker.queue("full", arguments=FULL)
    await channel.publish([to("full")])
    publishes = [to(key) for key in ("q", "full", "nowhere") * 40]
    receipts = await channel.publish(publishes)
    assert [type(receipt) for receipt in receipts] == [Confirmed, Nacked, Returned] * 40
    assert [receipt.message_id for receipt in receipts] == [each.message_id for each in publishes]


async def test_a_missing_exchange_makes_its_neighbours_unknown(channel, connection, broker: Broker):
    """A missing exchange closes the channel: what was not answered is Unknown with 404, and the next batch goes on."""
    await broker.queue("q")
    publishes = [*(to("q") for _ in range(20)), to("q", "missing"), *(to("q") for _ in range(20))]
    receipts = await channel.publish(publishes)
    assert isinstance(receipts[20], Unknown)
    assert receipts[20].reply_code == 404
    assert "missing" in str(receipts[20].cause)
    for receipt in receipts[:20]:
        assert isinstance(receipt, Confirmed) or receipt.reply_code == 404
    for receipt in receipts[21:]:
        assert isinstance(receipt, Unknown)
        assert receipt.reply_code == 404
    assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
    assert connection.generation == 1


async def test_a_missing_exchange_among_large_messages_costs_no_connection(channel, connection, broker: Broker):
    """P4: nothing more is written to a channel that the broker has closed, so the connection stays."""
    await broker.queue("q")
    body = b"x" * 300_000
    for _ in range(5):
        receipts = await channel.publish([to("q", "missing"), *(to("q", body=body) for _ in range(40))])
        assert all(isinstance(receipt, Unknown) for receipt in receipts)
        assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
    assert connection.generation == 1


async def test_many_batches_at_once_around_a_missing_exchange_all_get_receipts(channel, connection, broker: Broker):
    """P4: hundreds of concurrent publishes, one with a missing exchange: each gets a receipt, later ones are stored."""
    await broker.queue("q")
    batches = [[to("q")] for _ in range(250)] + [[to("q", "missing")]] + [[to("q")] for _ in range(250)]
    receipts = [batch[0] for batch in await asyncio.gather(*(channel.publish(batch) for batch in batches))]
    assert isinstance(receipts[250], Unknown)
    for receipt in receipts:
        assert isinstance(receipt, Confirmed | Unknown)
    assert isinstance((await channel.publish([to("q")]))[0], Confirmed)


async def test_publish_alone_finds_the_culprit(connection, broker: Broker):
    """Sent on a channel of its own a message answers for itself only."""
    await broker.queue("q")
    assert isinstance(await publish_alone(connection, to("q")), Confirmed)
    assert isinstance(await publish_alone(connection, to("nowhere")), Returned)
    alone = await publish_alone(connection, to("q", "missing"))
    assert isinstance(alone, Unknown)
    assert alone.reply_code == 404
    assert connection.generation == 1


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
async def test_one_id_to_two_destinations_never_swaps_verdicts(channel, broker: Broker, together):
    """P2: two publishes under one id, one routable and one not, get their own verdicts, 200 times out of 200."""
    await broker.queue("q")
    for turn in range(200):
        same = str(uuid4())
        pair = [to("q", message_id=same), to("nowhere", message_id=same)]
        if turn % 2:
            pair.reverse()
        if together:
            receipts = await channel.publish(pair)
        else:
            receipts = [batch[0] for batch in await asyncio.gather(*(channel.publish([each]) for each in pair))]
        assert [type(receipt) for receipt in receipts] == [
            Confirmed if each.routing_key == "q" else Returned for each in pair
        ]
    assert await broker.count("q") == 200


async def test_a_batch_larger_than_the_window_goes_piece_by_piece(connection, broker: Broker):
    """At most ``window`` messages are unconfirmed at any time, and the receipts keep their order."""
    await broker.queue("q")
    channel = ConfirmChannel(connection, window=10, deadline=20)
    publishes = [to("q" if n % 3 else "nowhere") for n in range(95)]
    publishing = asyncio.create_task(channel.publish(publishes))
    most = 0
    while not publishing.done():
        most = max(most, channel.unconfirmed)
        await asyncio.sleep(0)
    receipts = await publishing
    assert 1 < most <= 10
    assert [type(receipt) for receipt in receipts] == [Confirmed if n % 3 else Returned for n in range(95)]
    assert [receipt.message_id for receipt in receipts] == [each.message_id for each in publishes]


async def test_bodies_of_any_size_arrive_whole(channel, connection, broker: Broker):
    """Bodies at and over the broker's frame size are split and put together again."""
    await broker.queue("q")
    most = connection.frame_max - 8
    sizes = [0, 1, most - 1, most, most + 1, 2 * most, 3 * most + 5]
    bodies = [bytes([65 + position]) * size for position, size in enumerate(sizes)]
    receipts = await channel.publish([to("q", body=body) for body in bodies])
    assert all(isinstance(receipt, Confirmed) for receipt in receipts)
    assert [got.body for got in await broker.drain("q")] == bodies


async def test_a_missed_deadline_makes_all_unknown_and_cuts_the_connection(through_proxy, proxy, broker: Broker):
    """Answers lost: all receipts are Unknown after the deadline, the connection is a new one, the next is stored."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=1.0)
    assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
    proxy.to_client.mode = Mode.DROP
    began = time.monotonic()
    receipts = await channel.publish([to("q" if n % 2 else "nowhere") for n in range(20)])
    assert 0.9 < time.monotonic() - began < 5
    assert all(isinstance(receipt, Unknown) for receipt in receipts)
    assert all(isinstance(receipt.cause, TimeoutError) and receipt.reply_code is None for receipt in receipts)
    assert channel.unconfirmed == 0
    proxy.heal()
    await eventually(lambda: _is(through_proxy.generation, 2))
    assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
    assert await broker.count("q") == 12  # unknown was neither success nor failure: ten of the twenty were stored


async def test_a_missed_deadline_leaves_nothing_in_the_socket(through_proxy, proxy, broker: Broker):
    """P9: what had not reached the broker when the deadline passed never does, so a resend does not pile up copies."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=0.5)
    await channel.publish([to("q")])
    proxy.blackhole()
    for _ in range(3):
        with contextlib.suppress(BrokerAway):
            receipts = await channel.publish([to("q", body=b"y" * 200_000) for _ in range(100)])
            assert all(isinstance(receipt, Unknown) for receipt in receipts)
    proxy.reset()
    proxy.heal()

    async def confirmed():
        with contextlib.suppress(BrokerAway):
            assert isinstance((await channel.publish([to("q", body=b"last")]))[0], Confirmed)
            return
        raise AssertionError("no connection yet")

    await eventually(confirmed, within=20)
    bodies = [got.body[:1] for got in await broker.drain("q")]
    assert bodies.count(b"y") == 0, "nothing of the frozen time may arrive later"


async def test_a_cancelled_wait_leaves_the_channel_in_order(through_proxy, proxy, broker: Broker):
    """Cancelling a publish that waits for its confirms changes no verdict of the publishes around it."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=20)
    await channel.publish([to("q")])
    for turn in range(10):
        proxy.to_client.mode = Mode.BLACKHOLE
        ids = [str(uuid4()) for _ in range(2)]
        waiting = asyncio.create_task(channel.publish([to("q", message_id=ids[0]), to("nowhere", message_id=ids[1])]))
        await eventually(lambda: _is(channel.unconfirmed, 2))
        around = asyncio.create_task(channel.publish([to("nowhere"), to("q"), to("nowhere")]))
        await eventually(lambda: _is(channel.unconfirmed, 5))
        for _ in range(turn):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # The same ids again, to the other destinations: they have to wait for the verdicts nobody asks for any more.
        again = asyncio.create_task(channel.publish([to("nowhere", message_id=ids[0]), to("q", message_id=ids[1])]))
        proxy.heal()
        assert [type(receipt) for receipt in await around] == [Returned, Confirmed, Returned]
        assert [type(receipt) for receipt in await again] == [Returned, Confirmed]
        assert channel.unconfirmed == 0
    assert through_proxy.generation == 1


async def test_a_cancelled_write_swaps_no_verdict_of_the_same_id(through_proxy, proxy, broker: Broker):
    """P2: a publish cancelled while it is written, and the same id sent again elsewhere: each verdict is its own."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=20)
    await channel.publish([to("q")])
    same = str(uuid4())
    proxy.to_server.mode = Mode.BLACKHOLE
    large = [to("q", body=b"x" * 1_000_000) for _ in range(40)]
    writing = asyncio.create_task(channel.publish([to("nowhere", message_id=same), *large]))
    done, _ = await asyncio.wait({writing}, timeout=0.5)  # time for the first frames to reach the socket
    assert not done
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    again = asyncio.create_task(channel.publish([to("q", message_id=same), to("nowhere"), to("q")]))
    done, _ = await asyncio.wait({again}, timeout=0.2)
    assert not done
    proxy.heal()
    assert [type(receipt) for receipt in await again] == [Confirmed, Returned, Confirmed]
    await eventually(lambda: _is(channel.unconfirmed, 0), within=20)


async def test_a_cut_in_the_middle_makes_the_rest_unknown(through_proxy, proxy, broker: Broker):
    """A connection reset in the middle of a batch: each message has a receipt, and Confirmed is said of stored ones."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=20)
    await channel.publish([to("q")])
    publishes = [to("q", body=b"x" * 20_000) for _ in range(200)]
    proxy.to_server.cut_after(1_500_000)
    receipts = await channel.publish(publishes)
    assert [receipt.message_id for receipt in receipts] == [each.message_id for each in publishes]
    assert isinstance(receipts[-1], Unknown)
    assert isinstance(receipts[-1].cause, BrokerAway)
    await eventually(lambda: _is(through_proxy.generation, 2))
    assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
    stored = {got.message_id for got in await broker.drain("q")}
    confirmed = {receipt.message_id for receipt in receipts if isinstance(receipt, Confirmed)}
    assert confirmed <= stored


async def test_a_reset_while_waiting_makes_all_unknown_at_once(through_proxy, proxy, broker: Broker):
    """A reset connection is an answer: nobody waits for the deadline."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=60)
    await channel.publish([to("q")])
    proxy.to_client.mode = Mode.BLACKHOLE
    async with asyncio.timeout(15), asyncio.TaskGroup() as group:
        publishing = group.create_task(channel.publish([to("q") for _ in range(10)]))
        await eventually(lambda: _is(channel.unconfirmed, 10))
        proxy.reset()
    receipts = publishing.result()
    assert all(isinstance(receipt, Unknown) for receipt in receipts)


async def test_a_closed_channel_answers_what_is_under_way(through_proxy, proxy, broker: Broker):
    """close() turns whatever is unanswered into Unknown."""
    await broker.queue("q")
    channel = ConfirmChannel(through_proxy, deadline=60)
    await channel.publish([to("q")])
    proxy.to_client.mode = Mode.BLACKHOLE
    publishing = asyncio.create_task(channel.publish([to("q")]))
    await eventually(lambda: _is(channel.unconfirmed, 1))
    async with asyncio.timeout(15):
        await channel.close()
        (receipt,) = await publishing
    assert isinstance(receipt, Unknown)
    assert channel.unconfirmed == 0


async def test_bulk_publishing_that_does_not_prove_itself_is_not_used(amqp_url, broker: Broker, monkeypatch, caplog):
    """Where our frames get no answer and aiormq's do, messages are published by aiormq, and the log says so once."""
    await broker.queue("q")
    monkeypatch.setattr(Tap, "attach", lambda *_: None)  # as if aiormq had found another way to read its socket
    async with Connection([amqp_url]) as connection:
        channel = ConfirmChannel(connection, deadline=1.0)
        publishes = [to("q" if n % 3 else "nowhere") for n in range(30)]
        receipts = await channel.publish(publishes)
        assert [type(receipt) for receipt in receipts] == [Confirmed if n % 3 else Returned for n in range(30)]
        assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
        await channel.close()
        assert connection.generation == 1
    assert await broker.count("q") == 21
    assert [record.message for record in caplog.records if "one by one" in record.message][1:] == []


async def test_a_user_without_the_default_exchange_publishes_in_bulk(services: Services, amqp_url, broker: Broker):
    """Who may not write to the default exchange is refused in the self-test, and that proves enough."""
    await broker.exchange("e")
    await broker.queue("q", exchange="e")
    vhost, name = str(URL(amqp_url).path[1:]), f"u{uuid4().hex}"
    for command in (("add_user", name, "secret"), ("set_permissions", "-p", vhost, name, "", "^e$", "")):
        await asyncio.to_thread(services.rabbitmqctl, *command)
    try:
        async with Connection([str(URL(amqp_url).with_user(name).with_password("secret"))]) as connection:
            channel = ConfirmChannel(connection, deadline=10)
            assert isinstance((await channel.publish([to("q", "e")]))[0], Confirmed)
            assert connection.tap is not None
            assert connection.tap.trusted
            await channel.close()
    finally:
        await asyncio.to_thread(services.rabbitmqctl, "delete_user", name)


async def test_while_the_broker_blocks_publishing_is_refused_promptly(
    channel, connection, broker: Broker, services: Services
):
    """P10: under a memory alarm new publishes fail at once as BrokerAway and are fine again when it is over."""
    await broker.queue("q")
    await channel.publish([to("q")])
    await asyncio.to_thread(services.rabbitmqctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        before: list[asyncio.Task[list[Receipt]]] = []

        def blocked() -> None:
            """RabbitMQ tells a connection so once it publishes during the alarm, which may begin a moment later."""
            before.append(asyncio.create_task(channel.publish([to("q")])))
            assert connection.blocked

        await eventually(blocked, within=20, every=0.2)
        began = time.monotonic()
        with pytest.raises(BrokerAway, match="blocked"):
            await channel.publish([to("q")])
        with pytest.raises(BrokerAway, match="blocked"):
            await publish_alone(connection, to("q"))
        assert time.monotonic() - began < 2
        await eventually(lambda: _is(connection.blocked_seconds > 0, True))
    finally:
        await asyncio.to_thread(services.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")
    sent = [each for each in await asyncio.gather(*before, return_exceptions=True) if not isinstance(each, BrokerAway)]
    assert all(isinstance(receipt, Confirmed) for (receipt,) in sent)
    await eventually(lambda: _is(connection.blocked, False))
    assert isinstance((await channel.publish([to("q")]))[0], Confirmed)
    assert await broker.count("q") == len(sent) + 2
    assert connection.generation == 1


def _is(value: object, wanted: object) -> None:
    assert value == wanted
