"""What we believe of aiormq: the public names we build on, and where it would mislead us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelNotFoundEntity, PublishError
from pamqp import commands, frame

from compose.local import Services
from relmsg.broker.wire import copy_of, frames
from relmsg.testing import eventually
from tests.support.broker import Broker


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[aiormq.Connection]:
    connection = await aiormq.connect(amqp_url)
    yield connection
    await connection.close()


def properties(message_id: str) -> commands.Basic.Properties:
    return commands.Basic.Properties(message_id=message_id)


class Recorder:
    """Stands for a confirmation; notes what is called on it. ``answered`` is what it says to done()."""

    def __init__(self, *, answered: bool = False) -> None:
        self.calls: list[str] = []
        self.answered = answered

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> bool | None:
            self.calls.append(name)
            return self.answered if name == "done" else True

        return call


async def send(channel: aiormq.Channel, *routing_keys: str, recorder: Recorder | None = None) -> list[Recorder]:
    """Publish as relmsg does: one frame for many messages, and a stand-in for each in aiormq's maps."""
    recorders, data = [], b""
    async with channel.lock:
        for key in routing_keys:
            channel.delivery_tag += 1
            message_id = str(uuid4())
            recorders.append(recorder or Recorder())
            channel.confirmations[channel.delivery_tag] = recorders[-1]
            channel.message_id_delivery_tag[message_id] = channel.delivery_tag
            data += frames(copy_of(message_id, "", key, properties(message_id), b"x"), channel.number, 131_072)
        drained = channel.create_future()
        await channel.write_queue.put(ChannelFrame(payload=data, should_close=False, drain_future=drained))
        await drained
    return recorders


async def test_the_names_we_use_are_there(connection):
    """aiormq's Channel has every public name that relmsg.broker.batch and confirm build on, of the kind we expect."""
    channel = await connection.channel()
    assert isinstance(channel, aiormq.Channel)
    assert isinstance(channel.confirmations, OrderedDict)
    assert isinstance(channel.message_id_delivery_tag, dict)
    assert channel.delivery_tag == 0
    assert isinstance(channel.number, int)
    assert channel.write_queue is connection.write_queue
    assert asyncio.isfuture(channel.create_future())
    assert asyncio.isfuture(channel.closing)
    assert channel.closing is not channel.closing, "every asker gets an observer of its own, which it may cancel"
    assert connection.channels[channel.number] is channel
    assert connection.connection_tune.frame_max >= 4096
    assert connection.server_properties["version"]
    channel.closing.cancel()
    assert not channel.is_closed
    async with channel.lock:
        pass


async def test_a_confirmation_is_asked_and_answered_by_three_methods(connection, broker: Broker):
    """aiormq calls only done, set_result and set_exception on what stands in ``confirmations``, each answer once."""
    await broker.queue("q")
    await broker.queue("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel = await connection.channel()
    (first,) = await send(channel, "full")
    await eventually(lambda: _is(first.calls, ["done", "set_result"]))
    recorders = await send(channel, *["q", "full", "nowhere"] * 20)
    await eventually(lambda: _is(all(each.calls for each in recorders) and not channel.confirmations, True))
    for acked, nacked, returned in zip(recorders[::3], recorders[1::3], recorders[2::3], strict=True):
        assert acked.calls == ["done", "set_result"]
        assert nacked.calls == ["done", "set_exception"]
        assert returned.calls == ["set_exception"]


async def test_an_answer_to_what_was_given_up_is_asked_for_cancelled(connection, broker: Broker):
    """A confirmation that is done already is only asked whether it was cancelled: the answer is dropped."""
    await broker.queue("q")
    channel = await connection.channel()
    (late,) = await send(channel, "q", recorder=Recorder(answered=True))
    await eventually(lambda: _is(late.calls, ["done", "cancelled"]))


async def test_the_return_comes_before_its_ack(connection, broker: Broker, monkeypatch):
    """RabbitMQ sends basic.return before the basic.ack of the same publish, also when acks are gathered."""
    await broker.queue("q")
    channel = await connection.channel()
    heard: list[Any] = []
    put = channel.frames.put

    async def listen(item: tuple[int, Any]) -> None:
        heard.append(item[1])
        await put(item)

    monkeypatch.setattr(channel.frames, "put", listen)
    recorders = await send(channel, *["q", "nowhere"] * 100)
    await eventually(lambda: _is(all(each.calls for each in recorders) and not channel.confirmations, True))
    returned, acked = 0, 0
    for each in heard:
        if isinstance(each, commands.Basic.Return):
            returned += 1
        elif isinstance(each, commands.Basic.Ack) and (each.multiple or each.delivery_tag % 2 == 0):
            # Every second tag is unroutable; returns come in their order, so this many must have come by now.
            assert returned >= each.delivery_tag // 2
            acked += 1
    assert returned == 100
    assert acked > 0


async def test_two_publishes_with_one_id_swap_their_verdicts(connection, broker: Broker):
    """P2: two in-flight publishes with one message id swap their verdicts: the unroutable one is told Ack."""
    await broker.queue("q")
    channel = await connection.channel(on_return_raises=True)
    unroutable, routable = await asyncio.gather(
        channel.basic_publish(b"x", routing_key="nowhere", mandatory=True, properties=properties("same")),
        channel.basic_publish(b"x", routing_key="q", mandatory=True, properties=properties("same")),
        return_exceptions=True,
    )
    assert isinstance(unroutable, commands.Basic.Ack)
    assert isinstance(routable, PublishError)
    assert await broker.count("q") == 1


async def test_a_closed_channel_leaves_the_connections_map_before_our_close_ok(connection, monkeypatch):
    """P4: when the broker closes a channel it is out of ``connection.channels`` before the Close-Ok is queued."""
    channel = await connection.channel()
    known_at_close_ok: list[bool] = []
    put_nowait = connection.write_queue.put_nowait

    def listen(item: ChannelFrame) -> None:
        if isinstance(frame.unmarshal(item.payload)[2], commands.Channel.CloseOk):
            known_at_close_ok.append(channel.number in connection.channels)
        put_nowait(item)

    monkeypatch.setattr(connection.write_queue, "put_nowait", listen)
    with pytest.raises(ChannelNotFoundEntity):
        await channel.basic_publish(b"x", exchange="missing", properties=properties("m"))
    assert known_at_close_ok == [False]
    with pytest.raises(ChannelNotFoundEntity):
        await channel.closing


async def test_ready_can_be_asked_without_waiting(amqp_url, connection):
    """Connection.ready() ends in its first step when publishing is allowed, and waits in it when it is not."""
    with pytest.raises(StopIteration):
        connection.ready().send(None)
    question = aiormq.Connection(amqp_url).ready()
    assert asyncio.isfuture(question.send(None))
    question.close()


async def test_a_refused_virtual_host_hides_its_reason(amqp_url):
    """aiormq tells a refused virtual host by an InvalidFrameError that names Connection.OpenOk and no reason."""
    with pytest.raises(aiormq.exceptions.InvalidFrameError, match=r"Connection\.OpenOk.*Connection\.Close"):
        await aiormq.connect(f"{amqp_url}-missing")


async def test_a_lost_heartbeat_cancels_a_task_that_nobody_cancelled(amqp_url, services: Services):
    """P3: when heartbeats stay away, a waiting task gets CancelledError although nobody cancelled it."""
    connection = await aiormq.connect(f"{amqp_url}?heartbeat=1")
    channel = await connection.channel()
    with frozen(services):
        waiting = asyncio.create_task(channel.queue_declare("q"))
        done, _ = await asyncio.wait({waiting}, timeout=20)
    assert done
    assert waiting.cancelled()
    assert waiting.cancelling() == 0
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await connection.close()


async def test_what_timed_out_is_still_executed_when_the_broker_thaws(amqp_url, broker: Broker, services: Services):
    """P9: publishes that timed out on a frozen broker are all stored once it goes on."""
    await broker.queue("q")
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    with frozen(services):
        results = await asyncio.gather(
            *(
                channel.basic_publish(b"x", routing_key="q", properties=properties(str(n)), timeout=0.3)
                for n in range(200)
            ),
            return_exceptions=True,
        )
    assert all(isinstance(result, TimeoutError) for result in results)

    async def stored():
        assert await broker.count("q") == 200

    await eventually(stored, within=20)
    await connection.close()


@contextlib.contextmanager
def frozen(services: Services):
    pid = services.broker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _is(value: object, wanted: object) -> None:
    assert value == wanted
