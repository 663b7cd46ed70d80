"""An inbox at work inside the test's own process, what it is given, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker

QUEUE = "billing.orders"
QUICK = Retry(attempts=3, base=0.001, cap=0.001)


@asynccontextmanager
async def running(inbox: Inbox, amqp_url: str) -> AsyncIterator[asyncio.Event]:
    """The inbox at work; it is drained at the end, unless the test has set the event before."""
    stop, started = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(inbox.run(amqp_url, stop, started=started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not started.is_set():
        waiting.cancel()
        await task
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(40):
            await task


async def create_effect(engine: AsyncEngine) -> None:
    """The table of effects, which remembers their order."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (id text, at bigint GENERATED ALWAYS AS IDENTITY)"))


async def effect(session: AsyncSession, message: Message) -> None:
    """A handler, or a part of one: its effect is a row with the message's id."""
    await session.execute(text("INSERT INTO effect (id) VALUES (:id)"), {"id": str(message.id)})


async def effects(sessions: async_sessionmaker[AsyncSession]) -> list[str]:
    """The ids of all effects that are committed, in the order of the handlers."""
    async with sessions() as session:
        return list(await session.scalars(text("SELECT id FROM effect ORDER BY at")))


async def place(broker: Broker, *ids: str, body: bytes = b"{}", **properties: Any) -> None:
    """Put messages of these ids into the queue."""
    for message_id in ids:
        await broker.publish(
            body, routing_key=QUEUE, **{"message_id": message_id, "message_type": "order.placed", **properties}
        )


def sample(inbox: Inbox, metric: str, **labels: str) -> float:
    """The value of a metric; 0 where nothing was counted yet."""
    where = {"consumer": "billing", "queue": QUEUE, **labels}
    return inbox.metrics.registry.get_sample_value(metric, where) or 0


def counted(inbox: Inbox, outcome: str, **labels: str) -> float:
    """How many deliveries came to this end."""
    return sample(inbox, "relmsg_consumer_deliveries_total", outcome=outcome, **labels)


async def settled(inbox: Inbox, within: float = 30, **outcomes: int) -> None:
    """Wait until so many deliveries came to these ends."""

    def check() -> None:
        assert {outcome: counted(inbox, outcome) for outcome in outcomes} == outcomes

    await eventually(check, within=within)


async def unsubscribed(broker: Broker) -> None:
    """Wait until nobody consumes the queue any more."""

    async def nobody() -> None:
        assert await broker.consumers(QUEUE) == 0

    await eventually(nobody)


async def left(broker: Broker) -> int:
    """How many messages are in the queue once nobody holds any."""
    await unsubscribed(broker)
    return await broker.count(QUEUE)
