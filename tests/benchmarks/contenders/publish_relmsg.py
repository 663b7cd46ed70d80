"""``Publisher.publish_many`` as it is used for speed: 500 messages a call, four callers."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime

from relmsg import Message, Publisher
from relmsg.broker.receipt import Confirmed
from tests.benchmarks.contenders.said import when_told

AT_ONCE, CALLERS = 500, 4


async def main(queue: str, count: int, size: int) -> None:
    body = b"x" * size

    def message() -> Message:
        return Message(
            type="order.placed",
            routing_key=queue,
            body=body,
            headers={"tenant": "acme", "region": "eu-west-1"},
            source="orders",
            content_type="application/json",
            timestamp=datetime.now(UTC),
        )

    async with Publisher(os.environ["RELMSG_AMQP_URL"]) as publisher:
        left = count

        async def call() -> None:
            nonlocal left
            while left:
                many = min(left, AT_ONCE)
                left -= many
                receipts = await publisher.publish_many((message() for _ in range(many)), raises=False)
                assert all(isinstance(receipt, Confirmed) for receipt in receipts)

        async def publish() -> None:
            await asyncio.gather(*(call() for _ in range(CALLERS)))

        await when_told(publish)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
