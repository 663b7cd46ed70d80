"""faststream-outbox: ``publish`` notifies in the transaction, the relay listens."""

from __future__ import annotations

import asyncio
import os
import sys

from faststream.rabbit import Channel, RabbitBroker
from faststream_outbox import OutboxBroker, make_outbox_table
from faststream_outbox.annotations import OutboxMessage
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.benchmarks.contenders.latency_watch import Watch
from tests.benchmarks.contenders.publishing_order import NOTE, PlacedOrder, body
from tests.benchmarks.contenders.said import when_told

WORKERS = 20

metadata = MetaData()
table = make_outbox_table(metadata, table_name="fs_latency")


async def main(queue: str, count: int, every: float) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=WORKERS + 10)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    rabbit = RabbitBroker(
        os.environ["RELMSG_AMQP_URL"],
        default_channel=Channel(publisher_confirms=True, on_return_raises=True),
        logger=None,
    )
    outbox = OutboxBroker(engine, outbox_table=table, logger=None)
    watch = Watch()

    @outbox.subscriber(queue, max_workers=WORKERS, fetch_batch_size=500, terminal_flush_batch_size=100)
    async def forward(payload: bytes, message: OutboxMessage) -> None:
        await rabbit.publish(
            payload, queue, message_id=message.message_id, message_type="order.placed", persist=True, mandatory=True
        )

    async def send(key: str) -> None:
        async with sessions() as session:
            session.add(PlacedOrder(note=NOTE))
            await outbox.publish(body(key), queue=queue, session=session)
            watch.committing(key)
            await session.commit()

    await rabbit.connect()
    await outbox.start()
    await watch.receive(queue)
    await when_told(lambda: watch.run(count, every, send))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
