"""A process that is cancelled, or loses its database, while it looks at relmsg's tables: told as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Inbox, Message
from relmsg.db.search_path import local_search_path
from relmsg.errors import DatabaseAway
from relmsg.half.coordinator import Coordinator
from relmsg.outbox.relay import Relay
from relmsg.settings import Settings
from relmsg.testing import eventually

Sessions = async_sessionmaker[AsyncSession]
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
PARTS = ["relay", "coordinator", "inbox"]


@pytest.fixture
def part(
    request: pytest.FixtureRequest, sessions: Sessions, database_url: str, amqp_url: str
) -> Callable[[], Coroutine[Any, Any, None]]:
    """Runs this part."""
    settings = Settings(database_url=database_url, amqp_url=amqp_url, probes="")
    if request.param == "inbox":
        inbox = Inbox("billing", sessions)

        @inbox.handler("order.placed", queue="billing.orders")
        async def handle(message: Message) -> None: ...

        return lambda: inbox.run(amqp_url, asyncio.Event())
    kind = {"relay": Relay, "coordinator": Coordinator}[request.param]
    return lambda: kind(settings).run(asyncio.Event())


@pytest.fixture
async def locked(engine: AsyncEngine) -> AsyncIterator[Callable[[], Coroutine[Any, Any, int]]]:
    """The table with the version is locked; gives the backend that waits for it."""

    async def waiting() -> int:
        async with engine.connect() as connection:
            pid = await connection.scalar(text(WAITING))
        assert pid is not None
        return int(pid)

    async with engine.begin() as holder:
        await holder.execute(text("LOCK TABLE relmsg.relmsg_version IN ACCESS EXCLUSIVE MODE"))
        yield lambda: eventually(waiting)


@pytest.mark.parametrize("part", PARTS, indirect=True)
async def test_a_start_that_is_cancelled_ends_as_cancelled(part: Any, locked: Any) -> None:
    """Whoever cancels it while it waits for the database gets no other error out of it."""
    task = asyncio.create_task(part())
    await locked()
    task.cancel()
    await asyncio.wait({task}, timeout=20)
    assert task.cancelled()


@pytest.mark.parametrize("part", PARTS, indirect=True)
async def test_a_start_that_loses_the_database_says_so(part: Any, locked: Any, engine: AsyncEngine) -> None:
    """A server that ends the session is a database that is away, which a retry can help, and no fault of relmsg."""
    task = asyncio.create_task(part())
    pid = await locked()
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    with pytest.raises(DatabaseAway):
        await asyncio.wait_for(task, 20)


async def test_the_search_path_is_as_before_after_an_error_that_is_none_of_the_databases(engine: AsyncEngine) -> None:
    """A transaction of the user's that goes on after our error has its own search path."""

    def fails(connection: Any) -> str:
        connection.execute(text("SET LOCAL search_path = public"))
        with pytest.raises(ValueError, match="ours"), local_search_path(connection):
            raise ValueError("ours")
        return str(connection.execute(text("SHOW search_path")).scalar_one())

    async with engine.connect() as connection:
        assert await connection.run_sync(fails) == "public"


async def test_a_connection_lost_in_the_block_is_told_by_its_own_error(engine: AsyncEngine) -> None:
    """Not by the error of putting the search path back."""

    def loses(connection: Any) -> None:
        with local_search_path(connection):
            connection.execute(text("SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())"))

    async with engine.connect() as connection:
        with pytest.raises(DBAPIError):
            await connection.run_sync(loses)
