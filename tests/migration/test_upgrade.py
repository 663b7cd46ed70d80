"""Upgrading: to the same catalogue by every way, by any number of processes, under any name."""

from __future__ import annotations

import asyncio
import sys

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.schema import CreateSchema

from relmsg import migrate
from relmsg.database import create_engine
from relmsg.db.failures import translated
from relmsg.db.revisions import Revision, revisions
from relmsg.errors import AccessRefused, DatabaseAway, SchemaError, SettingsError
from relmsg.schema import SLOTS, tables

ODD_NAMES = ["relmsg", 'we"ird schema', "sch:em%a", "Ümlaut.Ünd", "'; DROP TABLE x; --", "x" * 63, "public"]


async def run_sql(url, script):
    engine = create_engine(url)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute(script)
    await engine.dispose()


@pytest.mark.parametrize("schema", ODD_NAMES)
async def test_migrations_add_up_to_the_schema(empty_url, empty_engine, schema):
    """All migrations together make exactly what relmsg.schema says, under any name."""
    assert await migrate.upgrade(empty_url, schema) == ["0001", "0002", "0003"]
    assert await migrate.check(empty_engine, schema) == []
    await migrate.require_current(empty_engine, schema)


@pytest.mark.parametrize("schema", ODD_NAMES)
async def test_the_plain_sql_ends_in_the_same_catalogue(empty_url, empty_engine, schema):
    """What a DBA runs by hand is as good as `relmsg db upgrade`, the version included."""
    await run_sql(empty_url, migrate.sql(schema))
    assert await migrate.check(empty_engine, schema) == []
    assert await migrate.upgrade(empty_url, schema) == []


async def test_psql_takes_the_plain_sql(empty_url, empty_engine):
    """`relmsg db sql | psql` works as documented."""
    psql = await asyncio.create_subprocess_exec(
        *("psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", empty_url.replace("+asyncpg", "")),
        stdin=asyncio.subprocess.PIPE,
    )
    await psql.communicate(migrate.sql().encode())
    assert psql.returncode == 0
    assert await migrate.check(empty_engine) == []


@pytest.mark.parametrize("schema", ["", "a\0b", "x" * 64, "pg_mine"])
async def test_names_that_cannot_be_are_refused(empty_url, empty_engine, schema):
    """A name PostgreSQL would cut or refuse is refused by every function."""
    with pytest.raises(SettingsError):
        await migrate.upgrade(empty_url, schema)
    with pytest.raises(SettingsError):
        await migrate.check(empty_engine, schema)
    with pytest.raises(SettingsError):
        migrate.sql(schema)


async def test_a_second_upgrade_changes_nothing(empty_url, empty_engine):
    """Upgrading what is up to date applies nothing and keeps the slots as they are."""
    await migrate.upgrade(empty_url)
    slots = tables().outbox_slot
    async with empty_engine.begin() as connection:
        await connection.execute(slots.update().values(epoch=7))
    assert await migrate.upgrade(empty_url) == []
    async with empty_engine.connect() as connection:
        count = await connection.scalar(select(func.count()).where(slots.c.epoch == 7))
    assert count == SLOTS


async def test_processes_that_upgrade_at_once_all_end_well(empty_url, empty_engine):
    """One of several processes does the work, the others wait for it and succeed."""
    code = "import asyncio, sys; from relmsg import migrate; print(asyncio.run(migrate.upgrade(sys.argv[1])))"
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, empty_url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    results = [await process.communicate() for process in started]
    assert [errors for _, errors in results] == [b""] * 4
    assert sorted(output.strip() for output, _ in results) == [b"['0001', '0002', '0003']", b"[]", b"[]", b"[]"]
    assert await migrate.check(empty_engine) == []


async def test_tasks_that_upgrade_at_once_all_end_well(empty_url):
    """Also inside one process, and for several schemas."""
    results = await asyncio.gather(*(migrate.upgrade(empty_url, name) for name in ("a", "a", "b", "b")))
    assert sorted(map(len, results)) == [0, 0, 3, 3]


async def test_a_lock_is_not_waited_for_while_others_queue_behind(empty_url, empty_engine):
    """An upgrade that meets a lock gives up after a second, lets the others pass, tries again, and succeeds."""
    waiting = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    async def blocked(unlike=None):
        """The process id of a backend that waits for a lock, once there is one."""
        while True:
            async with empty_engine.connect() as connection:
                pid = await connection.scalar(waiting)
            if pid not in (None, unlike):
                return pid
            await asyncio.sleep(0.05)

    async with empty_engine.connect() as holder:
        await holder.execute(CreateSchema("relmsg"))
        upgrading = asyncio.create_task(migrate.upgrade(empty_url))
        async with asyncio.timeout(20):
            await blocked(unlike=await blocked())
        await holder.rollback()
    assert await upgrading == ["0001", "0002", "0003"]


async def test_a_lock_that_stays_is_told(empty_url, empty_engine, monkeypatch):
    """A lock that never goes away ends in one clear error that a retry can help."""
    monkeypatch.setattr(migrate, "ATTEMPTS", 1)
    async with empty_engine.connect() as holder:
        await holder.execute(CreateSchema("relmsg"))
        with pytest.raises(DatabaseAway, match="another session holds a lock"):
            await migrate.upgrade(empty_url)


async def test_an_upgrade_that_fails_leaves_nothing(empty_url, empty_engine):
    """The schema, its tables and its version are one transaction."""
    async with empty_engine.begin() as connection:
        await connection.execute(CreateSchema("relmsg"))
        await connection.execute(text("CREATE TABLE relmsg.outbox_relay (owner int)"))
    with pytest.raises(SchemaError, match="not their version"):
        await migrate.upgrade(empty_url)
    async with empty_engine.connect() as connection:
        names = (await connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'relmsg'"))).all()
    assert names == ["outbox_relay"]


async def test_a_missing_schema_says_what_to_run(empty_engine):
    """Where nothing of relmsg stands, the error names the command."""
    with pytest.raises(SchemaError, match="run `relmsg db upgrade`"):
        await migrate.require_current(empty_engine)
    assert await migrate.check(empty_engine) == ["schema relmsg is missing"]


async def test_an_older_schema_says_what_to_run(empty_url, empty_engine, monkeypatch):
    """Where the tables are older than the code, the error names both versions and the command."""
    await migrate.upgrade(empty_url)
    newer = Revision("0004", "0003", "0004")
    monkeypatch.setattr(migrate, "_known", lambda: (*revisions(migrate.location()), newer))
    with pytest.raises(SchemaError, match=r"has version 0003, this relmsg needs 0004: run `relmsg db upgrade`"):
        await migrate.require_current(empty_engine)


async def test_a_newer_schema_is_left_alone(empty_url, empty_engine):
    """Where the tables are newer than the code, nothing is touched and the error says so."""
    await migrate.upgrade(empty_url)
    async with empty_engine.begin() as connection:
        await connection.execute(text("UPDATE relmsg.relmsg_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match=r"9999.*newer than this code"):
        await migrate.require_current(empty_engine)
    with pytest.raises(SchemaError, match=r"9999.*newer than this code"):
        await migrate.upgrade(empty_url)
    assert await migrate.check(empty_engine) == ["table relmsg_version: version is 9999, expected 0002"]


async def test_a_user_who_may_not_create_is_told_so(empty_url, empty_engine):
    """A missing permission is an answer of the service, not a fault of the program."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("SET LOCAL ROLE pg_monitor"))
        with pytest.raises(AccessRefused, match="permission denied for database"), translated(empty_url):
            await connection.run_sync(migrate.upgrade_connection)


async def test_a_dropped_table_is_told_at_the_start(empty_url, empty_engine):
    """A process whose table somebody dropped does not start, instead of pausing later as if the database were away."""
    await migrate.upgrade(empty_url)
    async with empty_engine.begin() as connection:
        await connection.execute(text("DROP TABLE relmsg.inbox_attempt"))
    with pytest.raises(SchemaError, match="inbox_attempt is missing"):
        await migrate.require_current(empty_engine)
