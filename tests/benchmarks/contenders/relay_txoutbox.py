"""txoutbox, tuned: batch 500, concurrency 500, no strict order, delivered rows deleted."""

from __future__ import annotations

import asyncio
import os
import sys

import aio_pika
from txoutbox import OutboxMessage, Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

DSN = os.environ["RELMSG_DATABASE_URL"].replace("+asyncpg", "")


async def _storage() -> PostgresStorage:
    return await PostgresStorage.connect(DSN, table="tx_outbox", strict_ordering=False, delete_on_ack=True)


async def prepare() -> None:
    """Make the table."""
    storage = await _storage()
    await storage.create_schema()
    await storage.close()
    print("prepared", flush=True)


async def relay() -> None:
    storage = await _storage()
    connection = await aio_pika.connect_robust(os.environ["RELMSG_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    exchange = channel.default_exchange

    async def publish(row: OutboxMessage) -> None:
        message = aio_pika.Message(
            row.payload,
            message_id=str(row.id),
            type="order.placed",
            headers=dict(row.headers),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, row.topic, mandatory=True)

    await Relay(storage, publish, config=RelayConfig(batch_size=500, concurrency=500)).run(handle_signals=True)
    await connection.close()
    await storage.close()


asyncio.run(prepare() if sys.argv[-1] == "prepare" else relay())
