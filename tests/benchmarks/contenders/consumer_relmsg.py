"""``relmsg.Inbox`` as a user writes it, with each of the ways in which a handler may be written."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Inbox, Message
from tests.benchmarks.contenders.consumer_charge import CHARGE, CONSUMER, POOL, TYPE, Charge, note, started, warm
from tests.benchmarks.contenders.said import when_told

LOOK_SECONDS = 0.02
INSERT = insert(Charge.__table__)


async def orm(message: Message, session: AsyncSession) -> None:
    """As most services write it."""
    session.add(Charge(message_id=str(message.id), note=note(message.body)))


async def flushed(message: Message, session: AsyncSession) -> None:
    """A handler that needs the row's id, or must know at once that the database takes it."""
    session.add(Charge(message_id=str(message.id), note=note(message.body)))
    await session.flush()


async def core(message: Message, session: AsyncSession) -> None:
    """SQLAlchemy Core in the session."""
    await session.execute(INSERT, {"message_id": str(message.id), "note": note(message.body)})


async def driver(message: Message, session: AsyncSession) -> None:
    """The session's own asyncpg connection, taken as quickly as SQLAlchemy gives it."""
    connection: Any = session.sync_session.connection().connection.driver_connection
    await connection.execute(CHARGE, str(message.id), note(message.body))


async def many(messages: list[Message], session: AsyncSession) -> None:
    """A list handler: one statement for all."""
    await session.execute(INSERT, [{"message_id": str(each.id), "note": note(each.body)} for each in messages])


HANDLERS = {each.__name__: each for each in (orm, flushed, core, driver, many)}


async def main(queue: str, count: int, variant: str, options: dict[str, dict[str, object]]) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=POOL, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    inbox = Inbox(CONSUMER, sessions, amqp_url=os.environ["RELMSG_AMQP_URL"], **options.get("inbox", {}))
    inbox.handler(TYPE, queue=queue, **options.get("handler", {}))(HANDLERS[variant])

    async def consume() -> dict[str, float]:
        stop, began = asyncio.Event(), 0.0

        def begin() -> None:
            nonlocal began
            began = started()

        running = asyncio.create_task(inbox.run(stop=stop, started=begin))
        while sum((outcomes := _outcomes(inbox)).values()) < count:
            if running.done():
                await running
                raise SystemExit("the inbox ended before all was handled")
            await asyncio.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - began
        stop.set()
        await running
        return {"seconds": seconds, **outcomes}

    await warm(engine)
    await when_told(consume)


def _outcomes(inbox: Inbox) -> dict[str, float]:
    """How many deliveries have come to their end, the ack included."""
    return {
        sample.labels["outcome"]: sample.value
        for metric in inbox.metrics.registry.restricted_registry(["relmsg_consumer_deliveries_total"]).collect()
        for sample in metric.samples
        if sample.name == "relmsg_consumer_deliveries_total"
    }


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])))
