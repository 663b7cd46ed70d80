"""aio-pika with an asyncpg pool of 10, one transaction a message, acked after the commit."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from uuid import UUID

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.contenders.consumer_charge import CHARGE, POOL, note, started
from tests.benchmarks.contenders.said import when_told

REMEMBER = "INSERT INTO charge_inbox(message_id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING 1"


async def main(queue: str, count: int, prefetch: int) -> None:
    dsn = os.environ["RELMSG_DATABASE_URL"].replace("+asyncpg", "")
    pool = await asyncpg.create_pool(dsn, min_size=POOL, max_size=POOL)
    connection = await aio_pika.connect_robust(os.environ["RELMSG_AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=prefetch)
    messages = await channel.get_queue(queue, ensure=False)
    left, done = count, asyncio.Event()

    async def charge(message: AbstractIncomingMessage) -> None:
        nonlocal left
        async with pool.acquire() as database, database.transaction():
            if await database.fetchval(REMEMBER, UUID(message.message_id)):
                await database.execute(CHARGE, message.message_id, note(message.body))
        await message.ack()
        left -= 1
        if not left:
            done.set()

    async def consume() -> dict[str, float]:
        began = started()
        await messages.consume(charge)
        await done.wait()
        seconds = time.perf_counter() - began
        await connection.close()
        return {"seconds": seconds}

    await when_told(consume)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
