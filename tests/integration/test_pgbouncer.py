"""Every command that asks the database through a real PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import func, insert

from relmsg.cli import main
from relmsg.database import create_engine
from relmsg.half.state import HalfState
from relmsg.outbox.backlog import Backlog
from relmsg.schema import tables
from tests.support.pgbouncer import pgbouncer


@pytest.fixture
async def pooled_url(database_url):
    async with pgbouncer(database_url) as url:
        yield url


async def placed(engine):
    """A message in the outbox to be parked and brought back, one to be dropped, and three parked half messages."""
    message, dropped, *halves = [str(uuid4()) for _ in range(5)]
    async with engine.begin() as connection:
        for each in (message, dropped):
            row = {"message_id": each, "exchange": "", "routing_key": "q", "body": b""}
            await connection.execute(insert(tables().outbox_message).values(row))
        for each in halves:
            row = {"half_id": each, "producer_group": "orders", "state": HalfState.PARKED, "exchange": ""}
            row |= {"routing_key": "q", "body": b"", "prepared_at": func.clock_timestamp(), "checks": 15}
            await connection.execute(insert(tables().half_message).values(row))
    return message, dropped, halves


async def test_every_verb_works_again_and_again(pooled_url, engine, monkeypatch, capsys):
    """Each verb that asks the database succeeds twenty times, whichever server connection it is lent."""
    monkeypatch.setenv("RELMSG_DATABASE_URL", pooled_url)
    for _ in range(20):
        message, dropped, (resumed, committed, rolled_back) = await placed(engine)
        for verb in (
            ("db", "upgrade"),
            ("db", "check"),
            ("outbox", "status"),
            ("outbox", "list"),
            ("outbox", "show", message),
            ("outbox", "park", message),
            ("outbox", "retry", message),
            ("outbox", "redirect", message, "--to-routing-key", "other", "--yes"),
            ("outbox", "drop", dropped, "--yes"),
            ("half", "list"),
            ("half", "show", resumed),
            ("half", "resume", resumed),
            ("half", "commit", committed),
            ("half", "rollback", rolled_back),
            ("inbox", "status"),
            ("inbox", "prune"),
        ):
            code = await asyncio.to_thread(main.run, verb)
            assert code == 0, (verb, capsys.readouterr().err)


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
