"""Publisher: messages without a database, each with its receipt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from relmsg.broker.publisher import Publisher
from relmsg.broker.receipt import Confirmed, Nacked, NotConfirmed, Returned, Unknown
from relmsg.errors import AccessRefused, BodyTooLarge, BrokerAway, HeaderRefused, SettingsError, UsageError
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Mode, Proxy

FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


@pytest.fixture
async def publisher(amqp_url: str) -> AsyncIterator[Publisher]:
    async with Publisher(amqp_url, source="tests", retry=Retry(attempts=2, base=0.01)) as publisher:
        yield publisher


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(amqp_url) as proxy:
        yield proxy


async def test_a_message_arrives_with_all_its_properties(publisher, broker: Broker):
    """What a message says is what a consumer gets, persistent and under the message's id."""
    await broker.exchange("shop")
    await broker.queue("q", exchange="shop", routing_key="order.placed")
    message = Message(
        type="order.placed", body={"id": 7}, exchange="shop", routing_key="order.placed", ordering_key="7",
        headers={"tenant": "a"}, correlation_id="c", reply_to="r", content_encoding="identity", expiration=60,
    )  # fmt: skip
    assert await publisher.publish(message) == Confirmed(str(message.id))
    (got,) = await broker.drain("q")
    properties = got.properties
    assert got.body == b'{"id":7}'
    assert got.headers == {"tenant": "a", "relmsg-key": "7"}
    assert (got.message_id, properties.message_type, properties.app_id) == (str(message.id), "order.placed", "tests")
    assert (properties.content_type, properties.content_encoding) == ("application/json", "identity")
    assert (properties.correlation_id, properties.reply_to, properties.expiration) == ("c", "r", "60000")
    assert (properties.delivery_mode, properties.priority) == (2, 0)


async def test_an_unroutable_message_raises_returned(publisher):
    """Returned is raised, with the message's id; nothing was stored and nothing is tried again."""
    message = Message(routing_key="nowhere")
    with pytest.raises(Returned, match="no queue is bound") as told:
        await publisher.publish(message)
    assert told.value.message_id == str(message.id)
    assert isinstance(told.value, NotConfirmed)


async def test_a_refused_message_raises_nacked_after_its_retries(publisher, broker: Broker):
    """Nacked is raised when also the retries were refused."""
    await broker.queue("full", arguments=FULL)
    await publisher.publish(Message(routing_key="full"))
    with pytest.raises(Nacked, match="full or unavailable"):
        await publisher.publish(Message(routing_key="full"))


@pytest.mark.parametrize("names", ["an id each", "one id"])
async def test_a_lost_connection_is_waited_for_once_in_a_call(amqp_url, proxy, broker: Broker, names):
    """However many messages a call still has to send, it waits for the connection once, and the rest is Unknown."""
    await broker.queue("q")
    messages = [Message(routing_key="q", body=b"x" * 10_000) for _ in range(1000)]
    if names == "one id":
        messages = [replace(each, id=messages[0].id) for each in messages]
    async with Publisher(proxy.through(amqp_url), window=4, deadline=1, retry=1) as publisher:
        await publisher.publish(messages[0])
        await proxy.refuse()
        proxy.to_server.cut_after(200_000)
        async with asyncio.timeout(60):  # a second for each of 900 messages would be 15 minutes
            receipts = await publisher.publish_many(messages, raises=False)
    kinds = [type(receipt) for receipt in receipts]
    confirmed = kinds.count(Confirmed)
    assert 0 < confirmed < 100
    assert kinds == [Confirmed] * confirmed + [Unknown] * (len(messages) - confirmed)


async def test_a_lost_answer_raises_unknown(amqp_url, proxy, broker: Broker):
    """Unknown is raised where no answer came in time, and the same message can be sent again under its id."""
    await broker.queue("q")
    async with Publisher(proxy.through(amqp_url), deadline=0.5) as publisher:
        await publisher.publish(Message(routing_key="q"))
        message = Message(routing_key="q")
        proxy.to_client.mode = Mode.DROP
        with pytest.raises(Unknown, match="may be stored or not") as told:
            await publisher.publish(message)
        assert isinstance(told.value.__cause__, TimeoutError)
        proxy.heal()

        async def again():
            try:
                return await publisher.publish(message)
            except BrokerAway as error:
                raise AssertionError from error

        assert await eventually(again) == Confirmed(str(message.id))
    assert [got.message_id for got in await broker.drain("q")][1:] == [str(message.id)] * 2


async def test_a_missing_exchange_raises_unknown_with_its_code(publisher, broker: Broker):
    """A missing exchange is Unknown with reply code 404, and the publisher goes on."""
    await broker.queue("q")
    with pytest.raises(Unknown, match="no exchange 'missing'") as told:
        await publisher.publish(Message(exchange="missing", routing_key="q"))
    assert told.value.reply_code == 404
    assert isinstance(await publisher.publish(Message(routing_key="q")), Confirmed)


async def test_receipts_can_be_had_as_values(publisher, broker: Broker):
    """With raises=False the receipt is returned, whatever it is."""
    await broker.queue("full", arguments=FULL)
    assert isinstance(await publisher.publish(Message(routing_key="full"), raises=False), Confirmed)
    assert isinstance(await publisher.publish(Message(routing_key="full"), raises=False), Nacked)
    assert isinstance(await publisher.publish(Message(routing_key="nowhere"), raises=False), Returned)
    assert isinstance(await publisher.publish(Message(exchange="missing"), raises=False), Unknown)


async def test_a_nacked_message_is_sent_again_until_there_is_room(amqp_url, broker: Broker):
    """A queue that is full for a moment costs a retry, not an error."""
    await broker.queue("full", arguments=FULL)
    async with Publisher(amqp_url, retry=Retry(attempts=1000, base=0.01, cap=0.05, budget=30)) as publisher:
        await publisher.publish(Message(routing_key="full", body="first"))
        messages = [Message(routing_key="full", body="second"), Message(routing_key="nowhere")]
        publishing = asyncio.create_task(publisher.publish_many(messages, raises=False))
        done, _ = await asyncio.wait({publishing}, timeout=0.3)
        assert not done
        assert [got.body for got in await broker.drain("full", most=1)] == [b"first"]
        receipts = await asyncio.wait_for(publishing, timeout=20)
    assert [type(receipt) for receipt in receipts] == [Confirmed, Returned]
    assert [(got.body, got.message_id) for got in await broker.drain("full")] == [(b"second", str(messages[0].id))]


async def test_receipts_of_many_come_in_the_order_of_the_messages(publisher, broker: Broker):
    """publish_many returns one receipt for each message, at its place, and raises none of them."""
    await broker.queue("q")
    await broker.queue("full", arguments=FULL)
    await publisher.publish(Message(routing_key="full"))
    messages = [Message(routing_key=key) for key in ("q", "full", "nowhere", "q") * 50]
    receipts = await publisher.publish_many(iter(messages), raises=False)
    assert [receipt.message_id for receipt in receipts] == [str(message.id) for message in messages]
    assert [type(receipt) for receipt in receipts] == [Confirmed, Nacked, Returned, Confirmed] * 50
    assert await publisher.publish_many([]) == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Message(routing_key="q", headers={"a": 1.5}), HeaderRefused),
        (Message(routing_key="q", body=b"x" * 1001), BodyTooLarge),
    ],
)
async def test_an_invalid_message_sends_nothing(amqp_url, broker: Broker, bad, error):
    """Where one message breaks a rule, none of the call is sent."""
    await broker.queue("q")
    async with Publisher(amqp_url, max_body_bytes=1000) as publisher:
        with pytest.raises(error):
            await publisher.publish_many([Message(routing_key="q"), bad, Message(routing_key="q")])
        await publisher.publish(Message(routing_key="q", body="after"))
    assert [got.body for got in await broker.drain("q")] == [b"after"]


async def test_fifty_tasks_share_a_publisher(publisher, broker: Broker):
    """Fifty tasks publish at once; each gets the receipt of its own messages."""
    await broker.queue("q")

    async def work(number: int) -> None:
        for turn in range(20):
            good, bad = Message(routing_key="q", body=f"{number}-{turn}"), Message(routing_key="nowhere")
            assert await publisher.publish(good) == Confirmed(str(good.id))
            receipt = await publisher.publish(bad, raises=False)
            assert isinstance(receipt, Returned)
            assert receipt.message_id == str(bad.id)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(work(number))
    bodies = [got.body.decode() for got in await broker.drain("q")]
    assert sorted(bodies) == sorted(f"{number}-{turn}" for number in range(50) for turn in range(20))
    for number in range(50):
        own = [body for body in bodies if body.startswith(f"{number}-")]
        assert own == [f"{number}-{turn}" for turn in range(20)], "one task's messages keep their order"


async def test_an_outage_is_survived(amqp_url, proxy, broker: Broker):
    """Messages published while the connection is lost and made again are confirmed, or told to be unconfirmed."""
    await broker.queue("q")
    confirmed: set[str] = set()
    async with Publisher(proxy.through(amqp_url), deadline=10) as publisher:

        async def work() -> None:
            while len(confirmed) < 300:
                message = Message(routing_key="q")
                try:
                    await publisher.publish(message)
                except (Unknown, BrokerAway):
                    continue
                confirmed.add(str(message.id))

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(work())
            for amount in (50, 150):
                await eventually(lambda least=amount: _is(len(confirmed) >= least, True), within=30)
                proxy.reset()
    stored = {got.message_id for got in await broker.drain("q")}
    assert confirmed <= stored


async def test_without_a_connection_the_deadline_holds(amqp_url, proxy):
    """While there is no connection a publish raises BrokerAway at the deadline."""
    async with Publisher(proxy.through(amqp_url), deadline=0.3) as publisher:
        await proxy.refuse()
        proxy.reset()
        began = time.monotonic()
        with pytest.raises((BrokerAway, Unknown)):
            await publisher.publish(Message(routing_key="q"))
        with pytest.raises(BrokerAway, match=r"no connection to RabbitMQ for 0\.3 s"):
            await publisher.publish(Message(routing_key="q"))
        assert time.monotonic() - began < 3


async def test_leaving_closes_promptly_and_quietly(amqp_url, broker: Broker):
    """Leaving the context ends the connection within seconds."""
    await broker.queue("q")
    async with Publisher(amqp_url) as publisher:
        await publisher.publish(Message(routing_key="q"))
        began = time.monotonic()
    assert time.monotonic() - began < 3


async def test_entering_fails_where_nobody_listens_or_the_login_is_wrong(amqp_url):
    """Entering raises BrokerAway or AccessRefused at once, and says no password."""
    host = amqp_url.rpartition("@")[2]
    with pytest.raises(AccessRefused) as refused:
        await Publisher(f"amqp://nobody:s3cret@{host}").__aenter__()
    with pytest.raises(BrokerAway) as away:
        await Publisher("amqp://nobody:s3cret@127.0.0.1:1").__aenter__()
    assert "s3cret" not in f"{refused.value}{away.value}"


@pytest.mark.parametrize("deadline", [0, -1])
def test_a_deadline_is_positive(deadline):
    """A deadline that could only fail is refused."""
    with pytest.raises(UsageError, match="positive number of seconds"):
        Publisher("amqp://guest@127.0.0.1", deadline=deadline)


def test_a_wrong_url_is_told():
    """A URL that is none raises SettingsError, without its password."""
    with pytest.raises(SettingsError) as told:
        Publisher("http://a:s3cret@b")
    assert "s3cret" not in str(told.value)


def _is(value: object, wanted: object) -> None:
    assert value == wanted


async def test_many_raise_as_one_does(amqp_url: str, broker: Broker) -> None:
    """`publish_many` raises the first receipt that is no confirmation, with those of all, unless told otherwise."""
    await broker.queue("q")
    messages = [Message(routing_key=key) for key in ("q", "none", "q", "nowhere")]
    async with Publisher(amqp_url) as publisher:
        with pytest.raises(Returned, match="none") as raised:
            await publisher.publish_many(messages)
        assert [type(each) for each in raised.value.receipts] == [Confirmed, Returned, Confirmed, Returned]
        receipts = await publisher.publish_many(messages, raises=False)
        assert [type(each) for each in receipts] == [Confirmed, Returned, Confirmed, Returned]
    assert await broker.count("q") == 4
