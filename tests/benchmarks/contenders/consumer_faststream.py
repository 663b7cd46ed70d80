"""FastStream with an AsyncSession for each message: pool of 10, prefetch 50, acked after the commit."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from uuid import UUID

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.benchmarks.contenders.consumer_charge import POOL, Charge, note, started, warm
from tests.benchmarks.contenders.said import when_told

PREFETCH = 50
REMEMBER = text("INSERT INTO charge_inbox(message_id) VALUES (:id) ON CONFLICT DO NOTHING RETURNING 1")


async def main(queue: str, count: int) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=POOL, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    broker = RabbitBroker(os.environ["RELMSG_AMQP_URL"], default_channel=Channel(prefetch_count=PREFETCH), logger=None)
    left, done = count, asyncio.Event()

    @broker.subscriber(RabbitQueue(queue, durable=True, declare=False), ack_policy=AckPolicy.NACK_ON_ERROR)
    async def charge(body: bytes, message: RabbitMessage) -> None:
        nonlocal left
        async with sessions() as session:
            if (await session.execute(REMEMBER, {"id": UUID(message.message_id)})).first() is not None:
                session.add(Charge(message_id=message.message_id, note=note(body)))
            await session.commit()
        left -= 1
        if not left:
            done.set()

    async def consume() -> dict[str, float]:
        began = started()
        await broker.start()
        await done.wait()
        seconds = time.perf_counter() - began
        await broker.stop()  # the last acks
        return {"seconds": seconds}

    await warm(engine)
    await broker.connect()
    await when_told(consume)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
