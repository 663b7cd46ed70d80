"""Messages go out over connections with every limit of a frame that a broker can set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compose.local import Services
from relmsg import Message, Publisher
from relmsg.broker import bulk
from relmsg.broker.bulk import BulkLine
from relmsg.broker.connection import Connection
from relmsg.broker.line import open_line
from relmsg.broker.plain import PlainLine
from relmsg.broker.wire import Publication, frames


@pytest.fixture
def frame_max(services: Services) -> Iterator[None]:
    """The broker's own limit stands again afterwards, whatever the test has set."""
    before = services.evaluate("element(2, application:get_env(rabbit, frame_max))")
    yield
    services.evaluate(f"application:set_env(rabbit, frame_max, {before})")


@pytest.mark.parametrize("limit", [0, 4096, 131_072, 10_000_000])
@pytest.mark.parametrize("bulk", ["on", "off"])
async def test_bodies_of_many_frames_arrive(limit, bulk, services, frame_max, amqp_url, broker, monkeypatch):
    """C5: without a limit (0), and with a small or a large one, bodies of any size arrive whole, and are confirmed."""
    monkeypatch.setenv("RELMSG_BULK", bulk)
    services.evaluate(f"application:set_env(rabbit, frame_max, {limit})")
    await broker.queue("q")
    bodies = [b"", b"x", b"y" * 4088, b"z" * 300_000, b"last"]
    async with Publisher(amqp_url) as publisher:
        for body in bodies:
            await publisher.publish(Message(body=body, routing_key="q"))
    assert [each.body for each in await broker.drain("q")] == bodies


async def test_the_self_test_sends_a_body(amqp_url, monkeypatch):
    """C5: a way of writing that loses bodies does not pass the test at the opening; aiormq writes instead."""

    def without_body(publish: Publication, channel: int, frame_max: int) -> bytes:
        return frames(publish._replace(body=b""), channel, frame_max)

    monkeypatch.setattr(bulk, "frames", without_body)
    async with Connection([amqp_url]) as connection:
        line = await open_line(connection, within=2.0)
        assert isinstance(line, PlainLine)
        await line.close()


@pytest.mark.parametrize("size", [1, 1000, 131_071])
async def test_a_broker_that_takes_small_messages_only(size, limited, amqp_url, broker):
    """The self-test's own body may be refused as too large: that proves both of its frames came, and stops nobody."""
    await limited(size)
    await broker.queue("q")
    async with Publisher(amqp_url) as publisher:
        await publisher.publish(Message(body=b"x" * size, routing_key="q"))
    async with Connection([amqp_url]) as connection:
        line = await open_line(connection, within=2.0)
        assert isinstance(line, BulkLine)
        await line.close()
    assert [each.body for each in await broker.drain("q")] == [b"x" * size]
