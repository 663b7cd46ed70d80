"""Coordinators inside the test's own process, and what they keep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.half.coordinator import Coordinator
from relmsg.half.state import HalfState
from relmsg.schema import tables
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.running import running_inside

HALF = tables().half_message
OUTBOX = tables().outbox_message


@asynccontextmanager
async def coordinating(
    database_url: str, amqp_url: str, *, scan_every: float = 0.05, **given: Any
) -> AsyncIterator[Coordinator]:
    """Run a coordinator until the block is left; its own failure fails the test."""
    settings = Settings(database_url=database_url, amqp_url=amqp_url, probes="", **given)
    async with running_inside(Coordinator(settings, scan_every=scan_every)) as part:
        yield part


async def half_row(engine: AsyncEngine, half_id: UUID) -> Row[Any] | None:
    """What the coordinators keep of a half message."""
    async with engine.connect() as connection:
        return (await connection.execute(select(HALF).where(HALF.c.half_id == half_id))).one_or_none()


async def outbox_rows(engine: AsyncEngine) -> list[Row[Any]]:
    """What is committed, in the order of the commits."""
    async with engine.connect() as connection:
        return list(await connection.execute(select(OUTBOX).order_by(OUTBOX.c.id)))


async def becomes(engine: AsyncEngine, half_id: UUID, state: HalfState, *, within: float = 20.0) -> Row[Any]:
    """Wait until the half message is in this state; its row."""

    async def check() -> Row[Any]:
        row = await half_row(engine, half_id)
        assert row is not None
        assert row.state == state
        return row

    return await eventually(check, within=within)


async def due_again(engine: AsyncEngine) -> None:
    """Make due at once what is open and waits for no member: with long intervals the test says when a check is sent.

    One whose last check nobody has received yet is left alone, so a slow machine sends no check twice.
    """
    received = HALF.c.check_sent == HALF.c.check_received
    async with engine.begin() as connection:
        await connection.execute(
            update(HALF)
            .where(HALF.c.state == HalfState.PREPARED, received)
            .values(next_check_at=func.clock_timestamp())
        )


async def counted(engine: AsyncEngine) -> dict[str, int]:
    """How many half messages are in each state."""
    async with engine.connect() as connection:
        found = await connection.execute(select(HALF.c.state, func.count()).group_by(HALF.c.state))
        return {state: count for state, count in found}  # noqa: C416 - dict() wants tuples, and a Row is none to mypy
