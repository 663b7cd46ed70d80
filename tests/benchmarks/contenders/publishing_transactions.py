"""A business transaction (one ORM row) with messages in it, against the same without: in blocks, by turns.

The ratios are close to 1, and the machine drifts by more than that within a minute. So all variants run in one
process, a block of each in every round, in a new order every time; a ratio is taken within a round, and the median of
those counts.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Outbox
from tests.benchmarks.contenders.publishing_order import NOTE, SOURCE, PlacedOrder, placed
from tests.benchmarks.contenders.said import when_told

QUEUE, TEN = "benchmark", 10

Publish = Callable[[AsyncSession], Awaitable[object]]


def variants() -> dict[str, Publish]:
    """What is done in the transaction beside the business row."""
    outbox, collecting = Outbox(SOURCE), Outbox(SOURCE, collect=True)

    async def none(session: AsyncSession) -> None:
        pass

    async def one(session: AsyncSession) -> None:
        await outbox.publish(session, placed(QUEUE))

    async def many(session: AsyncSession) -> None:
        await outbox.publish_many(session, [placed(QUEUE) for _ in range(TEN)])

    async def ten(session: AsyncSession) -> None:
        for _ in range(TEN):
            await outbox.publish(session, placed(QUEUE))

    async def collected(session: AsyncSession) -> None:
        for _ in range(TEN):
            await collecting.publish(session, placed(QUEUE))

    return {each.__name__: each for each in (none, one, many, ten, collected)}


async def main(concurrency: int, rounds: int, transactions: int) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=concurrency, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    publishes = variants()

    async def write(publish: Publish, count: int) -> None:
        for _ in range(count):
            async with sessions() as session, session.begin():
                session.add(PlacedOrder(note=NOTE))
                await publish(session)

    async def block(publish: Publish) -> tuple[float, float]:
        """Microseconds a transaction: that passed, and of this process's CPU."""
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(write(publish, transactions // concurrency) for _ in range(concurrency)))
        scale = 1e6 / transactions
        return (time.perf_counter() - began) * scale, (time.process_time() - cpu) * scale

    async def measured() -> dict[str, float]:
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in publishes}
        for number in range(rounds):
            order = list(publishes)
            random.Random(number).shuffle(order)
            for name in order:
                took[name].append(await block(publishes[name]))
        alone = took.pop("none")
        figures = {"none_us": median(each for each, _ in alone), "none_cpu_us": median(cpu for _, cpu in alone)}
        for name, blocks in took.items():
            pairs = list(zip(blocks, alone, strict=True))
            figures[name] = median(mine[0] / base[0] for mine, base in pairs)
            figures[f"{name}_extra_us"] = median(mine[0] - base[0] for mine, base in pairs)
            figures[f"{name}_extra_cpu_us"] = median(mine[1] - base[1] for mine, base in pairs)
        return figures

    for publish in publishes.values():  # every connection has prepared its statements
        await block(publish)
    await when_told(measured)


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
