"""Signed and encrypted messages through the whole chain, and forgeries that reach a consumer."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import (
    AesGcmKey,
    Encryption,
    HalfMessage,
    HalfProducer,
    HmacKey,
    Inbox,
    Message,
    Outbox,
    Publisher,
    Resolution,
    Retry,
    Sender,
    Signing,
    Trust,
)
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, running, settled
from tests.support.halves import coordinating
from tests.support.relaying import relaying

KEY = HmacKey("k", b"k" * 32)
SIGNING = Signing(KEY)
ENCRYPTION = Encryption(AesGcmKey("e", b"e" * 32))


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def queue(broker: Broker) -> str:
    return await broker.queue(QUEUE)


def order(number: int = 1, **given: Any) -> Message:
    return Message(
        type="order.placed", body={"card": "4711"}, routing_key=QUEUE, id=Message.id_for(str(number)), **given
    )


async def in_errors(broker: Broker, count: int) -> list[Any]:
    async def arrived() -> None:
        assert await broker.count(f"{QUEUE}.errors") == count

    await eventually(arrived, within=20)
    return await broker.drain(f"{QUEUE}.errors")


async def test_a_signed_and_encrypted_message_is_handled(
    sessions: async_sessionmaker[AsyncSession],
    engine: AsyncEngine,
    broker: Broker,
    queue: str,
    database_url: str,
    amqp_url: str,
) -> None:
    """From the outbox over the relay to the handler: signed for its source, and readable nowhere on the way."""
    outbox = Outbox("shop", signing=SIGNING, encryption=ENCRYPTION)
    inbox = Inbox("billing", sessions, trust=Trust({"shop": Sender(keys=KEY)}), encryption=ENCRYPTION)
    bodies: list[dict[str, str]] = []

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(body: dict[str, str], message: Message, session: AsyncSession) -> None:
        bodies.append(body)
        await effect(session, message)

    async with sessions.begin() as session:
        await outbox.publish(session, order(1, ordering_key="k"))
        await outbox.publish_many(session, [order(2), order(3, headers={"a": "b"})])
    async with engine.connect() as connection:
        stored = (await connection.scalars(text("SELECT body FROM relmsg.outbox_message"))).all()
    assert len(stored) == 3
    assert not any(b"4711" in body for body in stored)
    async with relaying(database_url, amqp_url), running(inbox, amqp_url):
        await settled(inbox, handled=3)
    assert bodies == [{"card": "4711"}] * 3


async def test_a_forgery_waits_in_the_error_queue_and_the_real_message_is_handled(
    sessions: async_sessionmaker[AsyncSession], broker: Broker, queue: str, amqp_url: str
) -> None:
    """Whoever sends a victim's source and id first cannot make its own message a duplicate: nothing is remembered."""
    inbox = Inbox("billing", sessions, trust=Trust({"shop": Sender(keys=KEY)}))
    inbox.handler("order.placed", queue=QUEUE)(effect)
    real = order(source="shop")
    async with (
        Publisher(amqp_url) as forger,
        Publisher(amqp_url, source="shop", signing=SIGNING) as shop,
        running(inbox, amqp_url),
    ):
        await forger.publish(real)
        (refused,) = await in_errors(broker, 1)
        await shop.publish(real)
        await settled(inbox, handled=1)
    assert refused.headers["relmsg-error-reason"] == "untrusted"
    assert await effects(sessions) == [str(real.id)]


async def test_what_a_handler_says_of_an_encrypted_body_stays_secret(
    sessions: async_sessionmaker[AsyncSession],
    broker: Broker,
    queue: str,
    amqp_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the error copy nor the log has the text of the exception, and the copy's body is as it came."""
    inbox = Inbox("billing", sessions, encryption=ENCRYPTION)

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=2, base=0.001))
    async def handle(body: dict[str, str]) -> None:
        raise ValueError(f"no such card: {body['card']}") from KeyError(body["card"])

    async with Publisher(amqp_url, encryption=ENCRYPTION) as publisher, running(inbox, amqp_url):
        await publisher.publish(order())
        (failed,) = await in_errors(broker, 1)
    assert "ValueError" in failed.headers["x-exception-message"]
    assert "in handle" in failed.headers["x-exception-stacktrace"]
    assert "4711" not in f"{failed.headers} {failed.body!r} {caplog.text}"


async def test_a_consumer_without_the_key_gives_the_message_back_for_later(
    sessions: async_sessionmaker[AsyncSession], broker: Broker, queue: str, amqp_url: str
) -> None:
    """What cannot be opened waits in the error queue, and says that the key is missing."""
    inbox = Inbox("billing", sessions)
    inbox.handler("order.placed", queue=QUEUE)(effect)
    async with Publisher(amqp_url, encryption=ENCRYPTION) as publisher, running(inbox, amqp_url):
        await publisher.publish(order())
        (failed,) = await in_errors(broker, 1)
    assert "encryption=" in failed.headers["x-exception-message"]
    assert failed.headers["relmsg-error-reason"] == "undecodable"


async def test_half_messages_are_protected_too(
    sessions: async_sessionmaker[AsyncSession],
    engine: AsyncEngine,
    broker: Broker,
    queue: str,
    database_url: str,
    amqp_url: str,
) -> None:
    """A checker sees the plain body; the coordinator's table does not; the consumer believes the signature."""
    inbox = Inbox("billing", sessions, trust=Trust({"shop": Sender(keys=KEY)}), encryption=ENCRYPTION)
    inbox.handler("order.placed", queue=QUEUE)(effect)
    asked: list[bytes] = []
    async with (
        relaying(database_url, amqp_url, coordinator=False),
        coordinating(database_url, amqp_url),
        HalfProducer(amqp_url, group="shop", signing=SIGNING, encryption=ENCRYPTION) as half,
        running(inbox, amqp_url),
    ):

        @half.checker("order.placed")
        async def check(message: HalfMessage) -> Resolution:
            asked.append(message.body)
            return Resolution.COMMIT

        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with half.begin(order(), check_after=0.05, check_every=0.2):
                async with engine.connect() as connection:
                    bodies = (await connection.scalars(text("SELECT body FROM relmsg.half_message"))).all()
                1 / 0  # noqa: B018
        await settled(inbox, handled=1)
    assert set(asked) == {b'{"card":"4711"}'}
    assert not any(b"4711" in body for body in bodies)
