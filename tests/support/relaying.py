"""A relay inside the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.outbox.relay import Relay
from relmsg.schema import tables
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.running import running_inside


@asynccontextmanager
async def relaying(
    database_url: str, amqp_url: str, *, stall_seconds: float = 30.0, **given: Any
) -> AsyncIterator[Relay]:
    """Run a relay until the block is left; its own failure fails the test."""
    settings = Settings(database_url=database_url, amqp_url=amqp_url, probes="", **given)
    async with running_inside(Relay(settings, stall_seconds=stall_seconds)) as part:
        yield part


async def waiting(engine: AsyncEngine, *, parked: bool = False) -> int:
    """How many rows wait in the outbox, or are parked."""
    row = tables().outbox_message
    async with engine.connect() as connection:
        condition = row.c.parked_at.is_not(None) if parked else row.c.parked_at.is_(None)
        return await connection.scalar(select(func.count()).where(condition)) or 0


async def emptied(engine: AsyncEngine, *, within: float = 20.0) -> None:
    """Wait until nothing waits in the outbox."""

    async def empty() -> None:
        assert await waiting(engine) == 0

    await eventually(empty, within=within)
