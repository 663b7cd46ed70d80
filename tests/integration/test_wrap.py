"""The stand-in for an aio-pika exchange."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.errors import ExpirationNotPositive, UnsupportedOperation, UnsupportedProperty
from tests.integration.test_outbox_publish import OUTBOX, rows
from tests.support.broker import Broker
from tests.support.relaying import emptied, relaying


async def test_every_property_it_can_keep_reaches_the_broker(
    engine: AsyncEngine,
    sessions: async_sessionmaker[AsyncSession],
    database_url: str,
    amqp_url: str,
    broker: Broker,
) -> None:
    """What an aio-pika message says arrives, through outbox and relay, as it would have by aio-pika itself."""
    await broker.exchange("shop", "topic")
    await broker.queue("orders", exchange="shop", routing_key="order.*")
    message_id, when = str(uuid4()), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = aio_pika.Message(
        b"\x00raw",
        headers={"tenant": "a", "n": 2},
        content_type="application/x-thing",
        content_encoding="gzip",
        correlation_id="c-1",
        reply_to="answers",
        expiration=3600,
        message_id=message_id,
        timestamp=when,
        type="order.placed",
        app_id="old-service",
    )
    async with sessions() as session, session.begin():
        await OUTBOX.wrap(session, "shop").publish(message, "order.placed", mandatory=True, timeout=5)
    async with relaying(database_url, amqp_url):
        await emptied(engine)

    (got,) = await broker.drain("orders")
    properties = got.properties
    assert (got.body, got.exchange, got.routing_key) == (b"\x00raw", "shop", "order.placed")
    assert got.headers == {"tenant": "a", "n": 2}
    assert (properties.content_type, properties.content_encoding) == ("application/x-thing", "gzip")
    assert (properties.correlation_id, properties.reply_to) == ("c-1", "answers")
    assert (properties.message_id, properties.timestamp) == (message_id, when)
    assert (properties.message_type, properties.app_id) == ("order.placed", "old-service")
    assert 3_590_000 < int(properties.expiration or 0) <= 3_600_000
    assert properties.delivery_mode == 2


async def test_a_message_without_content_type_stays_without(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A consumer that guesses by the content type must see what it saw before."""
    async with sessions() as session, session.begin():
        await OUTBOX.wrap(session, "shop").publish(aio_pika.Message(b"{}"), "o")
    (row,) = await rows(engine)
    assert row.content_type is None
    assert row.source == "orders"


@pytest.mark.parametrize(
    ("message", "options"),
    [
        pytest.param(aio_pika.Message(b"", priority=5), {}, id="priority"),
        pytest.param(aio_pika.Message(b"", user_id="guest"), {}, id="user_id"),
        pytest.param(aio_pika.Message(b""), {"immediate": True}, id="immediate"),
    ],
)
async def test_what_cannot_be_kept_raises(
    sessions: async_sessionmaker[AsyncSession], message: aio_pika.Message, options: dict[str, Any]
) -> None:
    """No property is dropped in silence."""
    async with sessions() as session, session.begin():
        with pytest.raises(UnsupportedProperty):
            await OUTBOX.wrap(session, "shop").publish(message, "o", **options)


async def test_an_expiration_in_the_past_raises(sessions: async_sessionmaker[AsyncSession]) -> None:
    """P6: aio-pika would send a negative number, on which the broker closes the channel."""
    past = datetime.now(UTC) - timedelta(seconds=5)
    async with sessions() as session, session.begin():
        with pytest.raises(ExpirationNotPositive):
            await OUTBOX.wrap(session, "shop").publish(aio_pika.Message(b"", expiration=past), "o")


@pytest.mark.parametrize("name", ["declare", "bind", "unbind", "delete"])
async def test_what_needs_a_broker_raises_by_name(sessions: async_sessionmaker[AsyncSession], name: str) -> None:
    """A call that only a broker could answer says which one it was and what to do instead, and changes nothing."""
    async with sessions() as session, session.begin():
        with pytest.raises(UnsupportedOperation, match=f"has no {name}: "):
            await getattr(OUTBOX.wrap(session, "shop"), name)("other", if_unused=True)


@pytest.mark.parametrize("name", ["channel", "auto_delete", "durable", "internal", "passive", "arguments", "restore"])
async def test_what_an_exchange_of_the_broker_has_raises_by_name(
    sessions: async_sessionmaker[AsyncSession], name: str
) -> None:
    """An attribute of aio-pika's exchanges is missing by name; code that looks whether it is there finds none."""
    async with sessions() as session:
        exchange = OUTBOX.wrap(session, "shop")
        with pytest.raises(UnsupportedOperation, match=f"has no {name}: "):
            getattr(exchange, name)
        assert not hasattr(exchange, name)


async def test_a_wrapped_exchange_passes_for_one_of_aio_pika(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Code that asks what kind of object it was given takes it, and shows it by its name."""
    async with sessions() as session:
        exchange = OUTBOX.wrap(session, "shop")
        assert isinstance(exchange, aio_pika.abc.AbstractExchange)
        assert (str(exchange), exchange.name) == ("shop", "shop")
        with pytest.raises(AttributeError, match="no attribute 'publisch'"):
            exchange.publisch  # noqa: B018
