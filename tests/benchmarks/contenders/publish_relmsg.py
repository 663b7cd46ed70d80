"""``Publisher.publish_many``, 10,000 messages a call."""

from __future__ import annotations

import asyncio
import os
import sys

from relmsg import Message, Publisher
from relmsg.broker.receipt import Confirmed
from tests.benchmarks.contenders.said import when_told

AT_ONCE = 10_000


async def main(queue: str, count: int, size: int) -> None:
    body = b"x" * size
    async with Publisher(os.environ["RELMSG_AMQP_URL"]) as publisher:

        async def publish() -> None:
            left = count
            while left:
                many = min(left, AT_ONCE)
                left -= many
                receipts = await publisher.publish_many(
                    Message(type="order.placed", routing_key=queue, body=body, content_type="application/json")
                    for _ in range(many)
                )
                assert all(isinstance(receipt, Confirmed) for receipt in receipts)

        await when_told(publish)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
