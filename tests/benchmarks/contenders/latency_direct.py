"""The lower bound, which loses messages: commit, then publish with aio-pika on the same event loop."""

from __future__ import annotations

import asyncio
import os
import sys

import aio_pika
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.benchmarks.contenders.latency_watch import Watch
from tests.benchmarks.contenders.publishing_order import NOTE, PlacedOrder, body
from tests.benchmarks.contenders.said import when_told


async def main(queue: str, count: int, every: float) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"])
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    connection = await aio_pika.connect_robust(os.environ["RELMSG_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    watch = Watch()

    async def send(key: str) -> None:
        async with sessions() as session:
            session.add(PlacedOrder(note=NOTE))
            await session.flush()
            watch.committing(key)
            await session.commit()
        message = aio_pika.Message(
            body(key), message_id=key, type="order.placed", delivery_mode=aio_pika.DeliveryMode.PERSISTENT
        )
        await channel.default_exchange.publish(message, queue, mandatory=True)

    await watch.receive(queue)
    await when_told(lambda: watch.run(count, every, send))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
