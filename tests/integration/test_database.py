"""What a failure near the database means: its state, or somebody else's fault."""

from __future__ import annotations

import asyncio
import socket

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from relmsg.database import create_engine, normalised
from relmsg.db.failures import translate, translated
from relmsg.errors import AccessRefused, DatabaseAway, SettingsError


async def failure(engine, statement="SELECT 1"):
    """The exception that a statement ends in."""
    with pytest.raises(Exception) as raised:
        async with engine.connect() as connection:
            await connection.execute(text(statement))
    await engine.dispose()
    return raised.value


@pytest.mark.parametrize("make", [create_engine, create_async_engine], ids=["ours", "the user's"])
async def test_a_refused_connection_means_away(database_url, make):
    """A closed port is DatabaseAway, and a retry can help, with any engine."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = make_url(database_url).set(host="127.0.0.1", port=held.getsockname()[1])
        error = await failure(make(url))
    assert isinstance(translate(error, url), DatabaseAway)
    assert translate(error).retryable


async def test_a_server_that_never_answers_means_away(database_url):
    """A host that takes the connection and stays silent is given up in time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = make_url(database_url).set(host="127.0.0.1", port=silent.getsockname()[1])
        error = await failure(create_engine(url, connect_args={"timeout": 0.2}))
    assert isinstance(translate(error), DatabaseAway)
    assert "no answer in time" in str(translate(error))


async def test_a_connection_cut_in_the_middle_means_away(database_url):
    """A backend that is ended under a running statement is DatabaseAway."""
    error = await failure(create_engine(database_url), "SELECT pg_terminate_backend(pg_backend_pid())")
    assert isinstance(translate(error), DatabaseAway)


async def test_a_connection_found_dead_means_away(database_url):
    """So is one that was ended while it was idle."""
    engine = create_engine(database_url, poolclass=NullPool)
    async with engine.connect() as connection:
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
        async with engine.connect() as other:
            await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(DatabaseAway), translated(database_url):
            await connection.execute(text("SELECT 1"))
    await engine.dispose()


async def test_no_such_database_means_refused(database_url):
    """A database that does not exist is no outage: no retry helps."""
    error = await failure(create_engine(make_url(database_url).set(database="nowhere")))
    assert isinstance(translate(error), AccessRefused)


@pytest.mark.parametrize("statement", ["SELECT 1/0", "SELECT * FROM nothing", "SELEKT", "SELECT 'x'::int"])
async def test_a_wrong_statement_means_nothing_about_the_database(database_url, statement):
    """An error in SQL is the statement's own fault."""
    assert translate(await failure(create_engine(database_url), statement)) is None


async def test_a_lock_not_available_is_the_statements_own_matter(database_url):
    """A handler that asks for NOWAIT has not met an outage."""
    engine = create_engine(database_url)
    async with engine.connect() as holder:
        await holder.execute(text("LOCK TABLE relmsg.outbox_relay"))
        with pytest.raises(DBAPIError), translated():
            async with engine.connect() as other:
                await other.execute(text("LOCK TABLE relmsg.outbox_relay NOWAIT"))
    await engine.dispose()


async def test_what_a_handler_meets_elsewhere_says_nothing_about_the_database():
    """A refused connection or a time-out that asyncpg did not raise is not the database's."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(OSError) as refused:
            await asyncio.open_connection(*held.getsockname())
    assert translate(refused.value) is None
    assert translate(TimeoutError()) is None
    assert translate(ValueError("x")) is None


def test_urls_are_brought_into_asyncpgs_form():
    """postgresql:// and libpq's sslmode are understood; other databases are refused without their password."""
    url = normalised("postgresql://u:p@h/d?sslmode=require")
    assert url.render_as_string(hide_password=False) == "postgresql+asyncpg://u:p@h/d?ssl=require"
    for wrong in ("mysql://u:ge-heim@h/d", "u:ge-heim@h", "postgresql://u:ge-heim@h:x/d"):
        with pytest.raises(SettingsError) as told:
            normalised(wrong)
        assert "ge-heim" not in str(told.value)


async def test_connections_can_be_told_apart_in_pg_stat_activity(database_url):
    """Connections are named relmsg, or as the URL says."""
    for url, name in ((database_url, "relmsg"), (f"{database_url}?application_name=billing", "billing")):
        engine = create_engine(url)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SHOW application_name")) == name
        await engine.dispose()
