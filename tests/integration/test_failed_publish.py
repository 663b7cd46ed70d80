"""A publish that fails, as the first statement of its transaction and as a later one: they go different ways."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Outbox
from tests.integration.test_outbox_publish import placed, rows


@pytest.mark.parametrize("first", [True, False])
async def test_a_failed_publish_raises_sqlalchemys_error(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], first: bool
) -> None:
    """Also without collecting, the error is the DBAPIError that any statement of the session would raise, its first
    one too, and SQLAlchemy's listeners are told of it."""
    told: list[object] = []
    event.listen(engine.sync_engine, "handle_error", told.append)
    async with sessions() as session, session.begin():
        if not first:
            await session.execute(text("SELECT 1"))
        with pytest.raises(ProgrammingError, match="nowhere") as refused:
            await Outbox("orders", schema="nowhere").publish(session, placed(1))
        assert refused.value.orig.sqlstate == "42P01"
        assert len(told) == 1
        await session.rollback()


@pytest.mark.parametrize("first", [True, False])
async def test_a_publish_into_a_lost_connection_tells_that_it_is_lost(engine: AsyncEngine, first: bool) -> None:
    """A publish whose connection is gone raises the DBAPIError that says so, and the connection is invalid."""
    async with engine.connect() as connection, engine.connect() as other, connection.begin():
        if not first:
            await connection.execute(text("SELECT 1"))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": driver.get_server_pid()})
        with pytest.raises(DBAPIError) as lost:
            await Outbox("orders").publish(connection, placed(1))
        assert lost.value.connection_invalidated
        assert connection.invalidated
        await connection.rollback()
    assert await rows(engine) == []


@pytest.mark.parametrize("first", [True, False])
async def test_a_cancelled_publish_leaves_no_connection_that_could_commit(engine: AsyncEngine, first: bool) -> None:
    """After a cancellation the connection is invalid: nobody can take a COMMIT on it for one."""
    async with engine.connect() as connection, engine.connect() as other:
        await other.execute(text("LOCK TABLE relmsg.outbox_message"))
        await connection.begin()
        if not first:
            await connection.execute(text("SELECT 1"))
        publish = asyncio.create_task(Outbox("orders").publish(connection, placed(1)))
        waiting = False
        while not waiting:
            waiting = await other.scalar(text("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
        publish.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publish
        assert connection.invalidated
        await other.rollback()
    assert await rows(engine) == []
