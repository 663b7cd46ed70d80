"""A relay or a coordinator inside the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from relmsg.half.coordinator import Coordinator
from relmsg.outbox.relay import Relay

P = TypeVar("P", Relay, Coordinator)


@asynccontextmanager
async def running_inside(part: P) -> AsyncIterator[P]:
    """Run it until the block is left; its own failure fails the test."""
    stop = asyncio.Event()
    task = asyncio.create_task(part.run(stop))
    started = asyncio.create_task(part.started.wait())
    try:
        await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
        yield part
    finally:
        started.cancel()
        stop.set()
        await task
