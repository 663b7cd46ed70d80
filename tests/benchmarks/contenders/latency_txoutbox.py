"""txoutbox as its page says for low latency: a trigger notifies, the relay listens. Its producer uses asyncpg."""

from __future__ import annotations

import asyncio
import os
import sys

import aio_pika
from txoutbox import OutboxMessage, Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

from tests.benchmarks.contenders.latency_watch import Watch
from tests.benchmarks.contenders.publishing_order import INSERT, NOTE, body
from tests.benchmarks.contenders.said import when_told


async def main(queue: str, count: int, every: float) -> None:
    dsn = os.environ["RELMSG_DATABASE_URL"].replace("+asyncpg", "")
    storage = await PostgresStorage.connect(
        dsn, table="tx_latency", strict_ordering=False, delete_on_ack=True, notify_channel="tx_latency"
    )
    await storage.create_schema()
    connection = await aio_pika.connect_robust(os.environ["RELMSG_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    watch = Watch()

    async def publish(row: OutboxMessage) -> None:
        message = aio_pika.Message(
            row.payload, message_id=str(row.id), type="order.placed", delivery_mode=aio_pika.DeliveryMode.PERSISTENT
        )
        await channel.default_exchange.publish(message, row.topic, mandatory=True)

    async def send(key: str) -> None:
        async with storage.pool.acquire() as database:
            transaction = database.transaction()
            await transaction.start()
            await database.execute(INSERT, NOTE)
            await storage.insert(database, queue, body(key))
            watch.committing(key)
            await transaction.commit()

    relay = Relay(storage, publish, config=RelayConfig(batch_size=500, concurrency=500))
    listener = await storage.listen(relay.wake)
    relaying = asyncio.create_task(relay.run())
    await watch.receive(queue)
    await when_told(lambda: watch.run(count, every, send))
    relaying.cancel()
    await listener.close()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
