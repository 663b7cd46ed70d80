"""relmsg: the outbox, and a relay that is woken in the process, by the hint, or by its polling only.

``wake`` and ``hint``: the relay runs on the same event loop, as those of the peers do. ``sidecar`` and ``polling``: it
is a process of its own, `relmsg relay`, with the hint and without.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from relmsg import Hint, Outbox
from relmsg.outbox.relay import Relay
from relmsg.settings import Settings
from tests.benchmarks.contenders.latency_watch import Watch
from tests.benchmarks.contenders.publishing_order import NOTE, SOURCE, PlacedOrder, placed
from tests.benchmarks.contenders.said import when_told


async def main(queue: str, count: int, every: float, path: str) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"])
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    relay, watch = Relay(_settings()), Watch()
    stack = AsyncExitStack()
    outbox = await _outbox(path, engine, relay, stack)

    async def send(key: str) -> None:
        async with sessions() as session:
            session.add(PlacedOrder(note=NOTE))
            await outbox.publish(session, placed(queue, key))
            await session.flush()
            watch.committing(key)
            await session.commit()

    if path in ("wake", "hint"):
        relaying = asyncio.create_task(relay.run(asyncio.Event()))
        started = asyncio.create_task(relay.started.wait())
        await asyncio.wait({relaying, started}, return_when=asyncio.FIRST_COMPLETED)
    await watch.receive(queue)
    await when_told(lambda: watch.run(count, every, send))
    await stack.aclose()


def _settings() -> Settings:
    named = {"database_url": os.environ["RELMSG_DATABASE_URL"], "amqp_url": os.environ["RELMSG_AMQP_URL"]}
    return Settings(**named, probes="")


async def _outbox(path: str, engine: AsyncEngine, relay: Relay, stack: AsyncExitStack) -> Outbox:
    match path:
        case "wake":
            return Outbox(SOURCE, wake=relay.wake)
        case "hint" | "sidecar":
            return Outbox(SOURCE, wake=await stack.enter_async_context(Hint(engine)))
        case "polling":
            return Outbox(SOURCE)
    raise SystemExit(f"{path}: wake, hint, sidecar or polling")


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
