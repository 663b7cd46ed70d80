"""A limit on a queue is lifted by a policy: who was refused before is let in again, on the same connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from compose.local import Services
from relmsg import Inbox, Message, Publisher, Retry
from relmsg.broker.receipt import Nacked
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, place, running

QUORUM = {"x-queue-type": "quorum"}
FULL = '{"max-length": 0, "overflow": "reject-publish"}'

Limit = Callable[[str], Awaitable[None]]
Lift = Callable[[], Awaitable[None]]


@pytest.fixture
def limits(services: Services, amqp_url: str) -> tuple[Limit, Lift]:
    """Two functions: queues whose names match take no message any more; all do again."""
    vhost = urlsplit(amqp_url).path[1:] or "/"

    async def limit(pattern: str) -> None:
        await asyncio.to_thread(
            services.rabbitmqctl, "set_policy", "-p", vhost, "limit", pattern, FULL, "--apply-to", "queues"
        )

    async def lift() -> None:
        await asyncio.to_thread(services.rabbitmqctl, "clear_policy", "-p", vhost, "limit")

    return limit, lift


async def test_a_publisher_is_let_in_again(amqp_url: str, broker: Broker, limits: tuple[Limit, Lift]) -> None:
    """RabbitMQ would go on refusing on the channel that it has refused on."""
    limit, lift = limits
    await broker.queue("q", arguments=QUORUM)
    async with Publisher(amqp_url) as publisher:

        async def refused() -> None:
            with pytest.raises(Nacked):
                await publisher.publish(Message(type="t", routing_key="q"))

        await publisher.publish(Message(type="t", routing_key="q"))
        await limit("^q$")
        await eventually(refused, within=30)
        await lift()

        async def taken() -> None:
            try:
                await publisher.publish(Message(type="t", routing_key="q"))
            except Nacked as error:
                raise AssertionError from error

        await eventually(taken, within=30)


async def test_a_consumer_goes_on_once_its_error_queue_takes_messages(
    sessions: async_sessionmaker[AsyncSession], amqp_url: str, broker: Broker, limits: tuple[Limit, Lift]
) -> None:
    """A full error queue makes it pause; when the limit is gone, the failed messages are in it and it is ready."""
    limit, lift = limits
    await broker.queue(QUEUE, arguments=QUORUM)
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def refuse(message: Message) -> None:
        raise ValueError("no")

    await place(broker, "1", "2")
    async with running(inbox, amqp_url):
        await eventually(lambda: holds(broker, f"{QUEUE}.errors", 2), within=30)
        await limit("errors$")
        await place(broker, "3")

        async def paused() -> None:
            assert "refused by the broker" in (inbox.ready() or "")

        await eventually(paused, within=30)
        await lift()

        async def ready() -> None:
            assert inbox.ready() is None

        await eventually(ready, within=60)
        await holds(broker, f"{QUEUE}.errors", 3)


async def holds(broker: Broker, queue: str, count: int) -> None:
    assert await broker.count(queue) == count
