"""What we believe of aio-pika: why its defaults, process() and its robust iterator are not used."""

from __future__ import annotations

import asyncio
import contextlib

import aio_pika
import aiormq
import pytest

from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Proxy


async def test_an_unroutable_publish_looks_like_success(amqp_url):
    """P1: with aio-pika's defaults an unroutable publish raises nothing: it returns the message that came back."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        answer = await channel.default_exchange.publish(aio_pika.Message(b"x"), "nowhere")
        assert not isinstance(answer, aiormq.spec.Basic.Ack)
        assert isinstance(answer, aiormq.abc.DeliveredMessage)
        strict = await connection.channel(on_return_raises=True)
        with pytest.raises(aio_pika.exceptions.PublishError):
            await strict.default_exchange.publish(aio_pika.Message(b"x"), "nowhere")


async def test_messages_are_transient_and_of_priority_zero_by_default():
    """P17, P18: aio-pika's messages are transient unless told otherwise, and always carry priority 0."""
    properties = aio_pika.Message(b"x").properties
    assert (properties.delivery_mode, properties.priority) == (1, 0)


async def test_a_cancelled_process_drops_the_message(amqp_url, broker: Broker):
    """C7: ``message.process()`` rejects without requeue when its task is cancelled: the message is gone."""
    await broker.queue("q")
    await broker.publish(b"precious", routing_key="q")
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        message = await (await channel.get_queue("q")).get()
        begun = asyncio.Event()

        async def handle():
            async with message.process():
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(handle())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await broker.drain("q") == []


async def test_the_robust_iterator_hands_out_stale_messages(amqp_url, broker: Broker):
    """C9: after a reconnect the robust iterator goes on with its old buffer; those acks fail and all come twice."""
    await broker.queue("q")
    for number in range(10):
        await broker.publish(b"%d" % number, routing_key="q")
    handled: list[bytes] = []
    failed = 0
    async with Proxy.before(amqp_url) as proxy:
        connection = await aio_pika.connect_robust(proxy.through(amqp_url), reconnect_interval=0.1)
        try:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=10)
            queue = await channel.get_queue("q")
            async with asyncio.timeout(30), queue.iterator() as messages:
                async for message in messages:
                    handled.append(message.body)
                    if len(handled) == 1:
                        # All ten are in the iterator's buffer before the cut.
                        await eventually(lambda: _is(messages._queue.qsize(), 9))
                        proxy.reset()
                        await eventually(lambda: _is(proxy.accepted, 2))
                        await connection.ready()
                    try:
                        await message.ack()
                    except Exception:
                        failed += 1
                    if set(handled[10:]) >= set(handled[:10]):
                        break
        finally:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await connection.close()
    assert sorted(handled[:10]) == [b"%d" % number for number in range(10)]
    assert failed >= 9
    assert len(handled) >= 20


def _is(value: object, wanted: object) -> None:
    assert value == wanted
