"""Every command that asks the database through a real PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from relmsg.database import create_engine
from relmsg.outbox.backlog import Backlog
from tests.support.pgbouncer import pgbouncer


@pytest.fixture
async def pooled_url(database_url):
    async with pgbouncer(database_url) as url:
        yield url


async def test_every_verb_works_again_and_again(pooled_url, engine, processes):
    """Each verb that asks the database gives the same answer each time, whichever server connection it is lent."""
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO relmsg.outbox_message (exchange, routing_key, body) VALUES ('', 'q', '')")
        )
    verbs = [("db", "upgrade"), ("db", "check"), ("outbox", "status"), ("outbox", "list"), ("half", "list")]
    verbs += [("outbox", "show", "1"), ("outbox", "retry", "--all"), ("outbox", "park", "--exchange", "", "--dry-run")]
    for _ in range(3):
        for verb in verbs:
            process = await processes.relmsg(*verb, RELMSG_DATABASE_URL=pooled_url)
            assert await process.wait(within=60) == 0, (verb, process.stderr)
            assert "Traceback" not in process.stderr


async def test_twenty_engines_use_two_server_connections_in_turn(pooled_url):
    """A statement prepared for one client is neither missing nor there already for the next one."""

    async def ask():
        engine = create_engine(pooled_url)
        try:
            for _ in range(5):
                assert (await Backlog(engine).status())["waiting"] == 0
        finally:
            await engine.dispose()

    for _ in range(5):
        await asyncio.gather(*(ask() for _ in range(4)))
