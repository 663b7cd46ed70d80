"""Many writers at once, with the hint and without it by turns: does waking the relay cost the database its peak?

``outbox``: transactions as a service makes them, through ``Outbox``. ``driver``: the same two rows by asyncpg alone,
which drives the database harder, and the hint given after each commit.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import asyncpg
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import create_async_engine

from relmsg import Hint, Outbox
from tests.benchmarks.contenders.publishing_order import INSERT, NOTE, SOURCE, TYPE, PlacedOrder, body, placed
from tests.benchmarks.contenders.said import when_told

QUEUE = "benchmark"
PLACE = insert(PlacedOrder.__table__).values(note=NOTE)
PUBLISH = """
INSERT INTO relmsg.outbox_message(type, source, exchange, routing_key, headers, body)
VALUES ($1, $2, '', $3, '{"tenant": "acme"}', $4)
"""
BODY = body()

Write = Callable[[int], Awaitable[None]]


async def main(how: str, writers: int, rounds: int, transactions: int) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=writers + 2, max_overflow=0)
    dsn = os.environ["RELMSG_DATABASE_URL"].replace("+asyncpg", "")
    pool = await asyncpg.create_pool(dsn, min_size=writers, max_size=writers) if how == "driver" else None

    def by_outbox(outbox: Outbox) -> Write:
        async def write(count: int) -> None:
            for _ in range(count):
                async with engine.begin() as connection:
                    await connection.execute(PLACE)
                    await outbox.publish(connection, placed(QUEUE))

        return write

    def by_driver(committed: Callable[[], object]) -> Write:
        async def write(count: int) -> None:
            assert pool is not None
            async with pool.acquire() as connection:
                for _ in range(count):
                    async with connection.transaction():
                        await connection.execute(INSERT, NOTE)
                        await connection.execute(PUBLISH, TYPE, SOURCE, QUEUE, BODY)
                    committed()

        return write

    async def block(write: Write) -> float:
        """Transactions a second."""
        began = time.perf_counter()
        await asyncio.gather(*(write(transactions // writers) for _ in range(writers)))
        return transactions / (time.perf_counter() - began)

    async def measured(without: Write, hinted: Write) -> dict[str, float]:
        pairs = []
        for number in range(rounds):
            order = (without, hinted) if number % 2 else (hinted, without)
            rates = {write: await block(write) for write in order}
            pairs.append((rates[hinted], rates[without]))
        with_it, without_it = zip(*pairs, strict=True)
        ratio = median(mine / other for mine, other in pairs)
        return {"hinted": ratio, "with_per_second": median(with_it), "without_per_second": median(without_it)}

    async with Hint(engine) as hint:
        if how == "driver":
            without, hinted = by_driver(lambda: None), by_driver(hint)
        else:
            without, hinted = by_outbox(Outbox(SOURCE)), by_outbox(Outbox(SOURCE, wake=hint))
        for write in (without, hinted):
            await block(write)
        await when_told(lambda: measured(without, hinted))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
