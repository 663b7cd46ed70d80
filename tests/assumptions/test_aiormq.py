"""What we believe of aiormq: the public names we build on, and where it would mislead us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from aiormq.connection import TCPTransportFactory, TransportFactory
from aiormq.exceptions import ChannelNotFoundEntity, PublishError
from pamqp import commands, frame

from compose.local import Services
from relmsg.broker.connection import Connection
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


class Spied(TransportFactory):
    """aiormq's own way to open a socket; notes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.given: tuple[Any, Any] | None = None

    async def create(self, url: Any, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await TCPTransportFactory().create(url, **options)
        write = writer.write

        def listen(data: bytes) -> None:
            self.written.append(data)
            write(data)

        writer.write = listen
        self.given = (reader, writer)
        return reader, writer


async def test_the_names_we_use_are_there(connection):
    """aiormq's Channel has every public name that relmsg's lines and subscribers build on, of the kind we expect."""
    channel = await connection.channel()
    assert isinstance(channel, aiormq.Channel)
    assert channel.delivery_tag == 0
    assert isinstance(channel.number, int)
    assert asyncio.isfuture(channel.closing)
    assert channel.closing is not channel.closing, "every asker gets an observer of its own, which it may cancel"
    assert connection.channels[channel.number] is channel
    assert connection.connection_tune.frame_max >= 4096
    assert connection.server_properties["version"]
    channel.closing.cancel()
    assert not channel.is_closed
    async with channel.lock:
        pass


async def test_the_socket_is_opened_by_the_factory_and_written_in_whole_frames(amqp_url, broker: Broker):
    """What a transport_factory opens is what aiormq reads and writes, and each of its writes is a row of whole frames:
    so frames of ours may be written between any two of them."""
    await broker.queue("q")
    spied = Spied()
    connection = aiormq.Connection(amqp_url, transport_factory=spied)
    await connection.connect()
    channel = await connection.channel()
    await asyncio.gather(
        *(channel.basic_publish(b"x" * 300_000, routing_key="q", properties=properties(str(n))) for n in range(5))
    )
    await connection.close()
    header, *rest = spied.written
    assert header.startswith(b"AMQP")
    assert len(rest) > 5
    for data in rest:
        while data:
            size, _, _ = frame.unmarshal(data)
            assert size > 0
            data = data[size:]


async def test_what_is_fed_to_the_reader_is_what_aiormq_hears(amqp_url):
    """aiormq reads nothing but its StreamReader: a reply that is put there is taken for the broker's."""
    spied = Spied()
    connection = aiormq.Connection(amqp_url, transport_factory=spied)
    await connection.connect()
    channel = await connection.channel()
    assert spied.given is not None
    cancelled: list[Any] = []
    channel.on_consumer_cancel_callbacks.add(cancelled.append)
    spied.given[0].feed_data(frame.marshal(commands.Basic.Cancel("ours", nowait=True), channel.number))
    await eventually(lambda: _is(len(cancelled), 1))
    await connection.close()


async def test_the_return_comes_before_its_ack(amqp_url, broker: Broker):
    """RabbitMQ sends basic.return before the basic.ack of the same publish, also when acks are gathered."""
    await broker.queue("q")
    heard: list[tuple[str, int]] = []

    class Listening:
        def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
            method = data[start : start + 4] if kind == 1 else b""
            if method == b"\x00\x3c\x00\x32":
                heard.append(("return", 0))
            elif method == b"\x00\x3c\x00\x50":
                heard.append(("ack", int.from_bytes(data[start + 4 : start + 12], "big")))
            return True

    async with Connection([amqp_url]) as connection:
        channel = await connection.channel(confirms=True)
        assert connection.tap is not None
        connection.tap.attach(channel.number, Listening())
        connection.tap.write(
            b"".join(
                frames(copy_of(str(n), "", "q" if n % 2 else "nowhere", properties(str(n)), b"x"), channel.number, 4096)
                for n in range(1, 201)
            )
        )
        await eventually(lambda: _is(("ack", 200) in heard, True))
    returned = 0
    for what, tag in heard:
        # Every second tag is unroutable; returns come in their order, so this many must have come by now.
        returned += what == "return"
        assert what == "return" or returned >= tag // 2
    assert returned == 100


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
    """P3: when heartbeats stay away, a waiting task may get CancelledError although nobody cancelled it."""
    # What a task waits for and the task itself end in an order that no rule gives: of many, some are cancelled.
    for _ in range(5):
        connection = await aiormq.connect(f"{amqp_url}?heartbeat=1")
        channels = [await connection.channel() for _ in range(20)]
        with frozen(services):
            waiting = {asyncio.create_task(channel.queue_declare("q")) for channel in channels}
            done, _ = await asyncio.wait(waiting, timeout=60)
        assert done == waiting
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await connection.close()
        cancelled = [task for task in waiting if task.cancelled()]
        if cancelled:
            break
    assert cancelled
    assert all(task.cancelling() == 0 for task in cancelled)


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
