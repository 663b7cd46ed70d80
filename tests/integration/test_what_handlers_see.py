"""Properties and bodies of other clients' messages, as a handler sees them."""

from __future__ import annotations

import gzip
import zlib
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from relmsg import Inbox, Message
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, QUICK, place, running, settled

pytestmark = pytest.mark.usefixtures("queue")


@pytest.fixture
async def queue(broker: Broker) -> str:
    return await broker.queue(QUEUE)


@pytest.fixture
def inbox(engine: AsyncEngine) -> Inbox:
    return Inbox("billing", async_sessionmaker(engine), max_body_bytes=100_000)


async def in_errors(broker: Broker, count: int) -> dict[str, Any]:
    async def arrived() -> None:
        assert await broker.count(f"{QUEUE}.errors") == count

    await eventually(arrived, within=20)
    return {each.properties.message_id: each for each in await broker.drain(f"{QUEUE}.errors")}


async def test_a_handler_sees_priority_user_id_expiration_and_redelivered(
    inbox: Inbox, broker: Broker, amqp_url: str
) -> None:
    """All four stand in the message; a message that was handed over before and not acked is redelivered."""
    seen: list[Message] = []

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message) -> None:
        seen.append(message)

    user = amqp_url.split("//")[1].split(":")[0]
    await place(broker, "1", priority=5, user_id=user, expiration="60000")
    async with broker.channel() as channel:  # takes it and leaves without an ack
        assert (await channel.basic_get(QUEUE)).delivery.routing_key == QUEUE
    await place(broker, "2")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2)
    first, second = sorted(seen, key=lambda each: str(each.id))
    assert (first.priority, first.user_id, first.expiration) == (5, user, timedelta(seconds=60))
    assert first.redelivered
    assert (second.priority, second.user_id, second.expiration, second.redelivered) == (None, None, None, False)


async def test_compressed_bodies_reach_handlers_decompressed(inbox: Inbox, broker: Broker, amqp_url: str) -> None:
    """The event is decoded from the decompressed body, and the message shows that body."""
    seen: list[tuple[dict[str, int], object]] = []

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(event: dict[str, int], message: Message) -> None:
        seen.append((event, message.body))

    body = b'\xef\xbb\xbf{"id": 7}'
    await place(broker, "1", body=gzip.compress(body), content_encoding="gzip")
    await place(broker, "2", body=zlib.compress(body), content_encoding="deflate")
    await place(broker, "3", body=body, content_encoding="utf-8")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=3)
    assert seen == [({"id": 7}, body)] * 3


async def test_a_bomb_and_an_unknown_encoding_wait_in_the_error_queue_as_they_came(
    inbox: Inbox, broker: Broker, amqp_url: str
) -> None:
    """The others go on; the error copies have the original bytes and encoding."""

    @inbox.handler("order.placed", queue=QUEUE, retry=QUICK)
    async def handle(event: dict[str, int]) -> None: ...

    bomb = gzip.compress(bytes(10_000_000))
    await place(broker, "bomb", body=bomb, content_encoding="gzip")
    await place(broker, "brotli", body=b"{}", content_encoding="br")
    await place(broker, "good", body=b"{}")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1)
        copies = await in_errors(broker, 2)
    assert copies["bomb"].body == bomb
    assert copies["bomb"].properties.content_encoding == "gzip"
    assert copies["brotli"].body == b"{}"
    assert {each.headers["relmsg-error-reason"] for each in copies.values()} == {"undecodable"}
    assert "100000 bytes" in copies["bomb"].headers["x-exception-message"]


async def test_a_handler_of_bytes_gets_an_unknown_encoding_as_it_came(
    inbox: Inbox, broker: Broker, amqp_url: str
) -> None:
    """Who asks for bytes decodes what relmsg does not know."""
    seen: list[tuple[bytes, str | None]] = []

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(body: bytes, message: Message) -> None:
        seen.append((body, message.content_encoding))

    await place(broker, "1", body=b"\x0b\x02\x80{}\x03", content_encoding="br")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1)
    assert seen == [(b"\x0b\x02\x80{}\x03", "br")]


async def test_ids_that_the_broker_moved_into_headers_are_ids(
    broker: Broker, amqp_url: str, engine: AsyncEngine
) -> None:
    """F3: two AMQP 1.0 messages that agree in all but the moved id both take effect; a copy of one is a duplicate."""
    inbox = Inbox("billing", async_sessionmaker(engine), missing_id="hash")
    seen: list[tuple[object, str | None]] = []

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message) -> None:
        seen.append((message.id, message.correlation_id))

    for moved in ("long" * 100, 7, "long" * 100, bytearray(b"\x01\x02")):
        headers = {"x-message-id": moved, "x-correlation-id": "c" * 300}
        await broker.publish(b"{}", routing_key=QUEUE, message_type="order.placed", headers=headers)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=3, duplicate=1)
    assert {each for each, _ in seen} == {"long" * 100, "7", "base64:AQI="}
    assert {each for _, each in seen} == {"c" * 300}
