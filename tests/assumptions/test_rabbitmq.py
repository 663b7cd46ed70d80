"""What we believe of RabbitMQ: what closes a channel, what drops in silence, what order a requeue leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiormq
import pytest
from aiormq import exceptions as amqp
from pamqp.commands import Basic

from relmsg.broker.envelope import MAX_EXPIRATION_MS
from relmsg.testing import eventually
from tests.support.broker import Broker


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[aiormq.Connection]:
    connection = await aiormq.connect(amqp_url)
    yield connection
    if not connection.is_closed:
        await connection.close()


@pytest.mark.parametrize(
    ("publish", "properties", "error"),
    [
        ({"exchange": "missing"}, {}, amqp.ChannelNotFoundEntity),
        ({"exchange": "internal"}, {}, amqp.ChannelAccessRefused),
        ({}, {"user_id": "somebody-else"}, amqp.ChannelPreconditionFailed),
        ({}, {"expiration": "soon"}, amqp.ChannelPreconditionFailed),
        ({}, {"expiration": "-1"}, amqp.ChannelPreconditionFailed),
        ({}, {"expiration": str(MAX_EXPIRATION_MS + 1)}, amqp.ChannelPreconditionFailed),
        ({}, {"headers": {"CC": "not a list"}}, amqp.ChannelPreconditionFailed),
    ],
    ids=str,
)
async def test_one_message_closes_its_channel(connection, broker: Broker, publish, properties, error):
    """P6: a message that RabbitMQ objects to closes the channel it came by, and only that."""
    await broker.queue("q")
    async with broker.channel() as other:
        await other.exchange_declare("internal", internal=True, auto_delete=True)
    channel = await connection.channel()
    with pytest.raises(error):
        await channel.basic_publish(
            b"x", routing_key="q", properties=Basic.Properties(message_id="m", **properties), **publish
        )
    assert not connection.is_closed
    assert not (await connection.channel()).is_closed


async def test_the_largest_expiration_is_ten_years(connection, broker: Broker):
    """P6: ten years of 365 days is the longest expiration that RabbitMQ takes."""
    await broker.queue("q")
    channel = await connection.channel()
    properties = Basic.Properties(message_id="m", expiration=str(MAX_EXPIRATION_MS))
    assert isinstance(await channel.basic_publish(b"x", routing_key="q", properties=properties), Basic.Ack)


@pytest.mark.parametrize(
    ("publish", "properties", "error"),
    [
        ({"immediate": True}, {}, amqp.ConnectionNotImplemented),
        ({}, {"headers": {"a": "x" * 131_072}}, amqp.ConnectionFrameError),
    ],
    ids=["immediate", "headers larger than a frame"],
)
async def test_one_message_closes_the_whole_connection(connection, broker: Broker, publish, properties, error):
    """P6: some messages cost the connection, and every channel on it."""
    await broker.queue("q")
    channel, neighbour = await connection.channel(), await connection.channel()
    with pytest.raises(error):
        await channel.basic_publish(
            b"x", routing_key="q", properties=Basic.Properties(message_id="m", **properties), **publish
        )
    await eventually(lambda: _is((connection.is_closed, neighbour.is_closed), (True, True)))


async def test_a_queue_that_drops_its_head_acks_what_it_throws_away(broker: Broker):
    """P20: with the default overflow a full queue confirms every message and deletes the oldest."""
    await broker.queue("q", arguments={"x-max-length": 2})
    for number in range(5):
        await broker.publish(b"%d" % number, routing_key="q")
    assert [got.body for got in await broker.drain("q")] == [b"3", b"4"]


async def test_an_expiration_of_zero_is_acked_and_gone(broker: Broker):
    """P20: a message with expiration 0 is confirmed and never seen again."""
    await broker.queue("q")
    await broker.publish(b"x", routing_key="q", expiration="0")
    assert await broker.drain("q") == []


async def test_a_message_expires_only_at_the_head_of_its_queue(broker: Broker):
    """B8: behind a message of 60 s one of 0.2 s stays where it is; at the head it goes."""
    await broker.queue("slow first")
    await broker.queue("fast first")
    for queue, expirations in (("slow first", ("60000", "200")), ("fast first", ("200", "60000"))):
        for expiration in expirations:
            await broker.publish(b"x", routing_key=queue, expiration=expiration)

    async def expired():
        assert await broker.count("fast first") == 1

    await eventually(expired)
    await asyncio.sleep(0.3)  # time itself is what is tested
    assert await broker.count("slow first") == 2


@pytest.mark.parametrize("limited", [True, False], ids=["with a delivery limit", "without"])
async def test_where_a_quorum_queue_puts_what_is_requeued(connection, broker: Broker, limited):
    """B2: a requeued message goes to the back of a quorum queue that has no delivery limit, else to the front."""
    version = int(str(connection.server_properties["version"]).split(".")[0])
    arguments = {"x-queue-type": "quorum"} | ({"x-delivery-limit": 5} if limited else {})
    await broker.queue("q", arguments=arguments)
    for number in range(6):
        await broker.publish(b"%d" % number, routing_key="q")
    async with broker.channel() as channel:
        got = await channel.basic_get("q")
        assert got.body == b"0"
        await channel.basic_nack(got.delivery_tag, requeue=True)
    order = b"".join([got.body for got in await broker.drain("q")])
    assert order == (b"012345" if limited or version >= 4 else b"123450")


async def test_an_exclusive_queue_is_refused_to_another_connection(connection, amqp_url):
    """An exclusive queue belongs to its connection: others get 405, and it is free once that is gone."""
    await (await connection.channel()).queue_declare("mine", exclusive=True)
    other = await aiormq.connect(amqp_url)
    with pytest.raises(amqp.ChannelLockedResource):
        await (await other.channel()).queue_declare("mine", exclusive=True)
    await connection.close()

    async def free():
        try:
            await (await other.channel()).queue_declare("mine", exclusive=True)
        except amqp.ChannelLockedResource as error:
            raise AssertionError from error

    await eventually(free)
    await other.close()


def _is(value: object, wanted: object) -> None:
    assert value == wanted
