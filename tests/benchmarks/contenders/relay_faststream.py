"""faststream-outbox, tuned: 20 workers, fetch 500, terminal flush 100; its handler publishes with FastStream."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from faststream.rabbit import Channel, RabbitBroker
from faststream_outbox import OutboxBroker, make_outbox_table
from faststream_outbox.annotations import OutboxMessage
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

WORKERS = 20

metadata = MetaData()
table = make_outbox_table(metadata, table_name="fs_outbox")
# Each worker holds a connection of its own.
engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=WORKERS + 10)


async def prepare() -> None:
    """Make the table."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()
    print("prepared", flush=True)


async def relay(queue: str) -> None:
    rabbit = RabbitBroker(
        os.environ["RELMSG_AMQP_URL"],
        default_channel=Channel(publisher_confirms=True, on_return_raises=True),
        log_level=logging.DEBUG,
        logger=None,
    )
    outbox = OutboxBroker(engine, outbox_table=table, logger=None)

    @outbox.subscriber(queue, max_workers=WORKERS, fetch_batch_size=500, terminal_flush_batch_size=100)
    async def forward(body: bytes, message: OutboxMessage) -> None:
        await rabbit.publish(
            body,
            queue,
            message_id=message.message_id,
            message_type="order.placed",
            headers=message.headers,
            persist=True,
            mandatory=True,
        )

    await rabbit.connect()
    await outbox.start()
    await asyncio.Event().wait()


asyncio.run(prepare() if sys.argv[-1] == "prepare" else relay(sys.argv[1]))
