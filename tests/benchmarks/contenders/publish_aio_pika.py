"""aio-pika as it is used for speed: gather over 1000 publishes at a time, on one channel with confirms."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from datetime import UTC, datetime

import aio_pika

from tests.benchmarks.contenders.said import when_told

AT_ONCE = 1000


async def main(queue: str, count: int, size: int) -> None:
    body = b"x" * size
    connection = await aio_pika.connect_robust(os.environ["RELMSG_AMQP_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = channel.default_exchange

        def message() -> aio_pika.Message:
            return aio_pika.Message(
                body,
                message_id=str(uuid.uuid4()),
                type="order.placed",
                headers={"tenant": "acme", "region": "eu-west-1"},
                app_id="orders",
                timestamp=datetime.now(UTC),
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )

        async def publish() -> None:
            left = count
            while left:
                many = min(left, AT_ONCE)
                left -= many
                await asyncio.gather(*(exchange.publish(message(), queue, mandatory=True) for _ in range(many)))

        await when_told(publish)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
