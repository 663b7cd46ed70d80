"""Upgrading a table that is not small, while a session holds a lock on it and others write."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from relmsg import migrate

INSERT = text(
    "INSERT INTO relmsg.inbox_message (consumer, source, message_id) VALUES ('shop', 'web', gen_random_uuid()::text)"
)
FILL = text(
    "INSERT INTO relmsg.inbox_message (consumer, source, message_id) "
    "SELECT 'shop', 'web', gen_random_uuid()::text FROM generate_series(1, 30000)"
)
BROKEN = text("SELECT NOT indisvalid FROM pg_index WHERE indexrelid = 'relmsg.inbox_message_handled_at'::regclass")
BUILD = text("CREATE INDEX CONCURRENTLY inbox_message_handled_at ON relmsg.inbox_message (consumer, handled_at)")


@pytest.mark.parametrize("left", ["broken", "missing"])
async def test_an_index_is_built_and_no_writer_waits_a_second(empty_url, empty_engine, left):
    """While an upgrade waits for another session to build an index that is broken or missing, each insert passes."""
    await migrate.upgrade(empty_url)
    async with empty_engine.begin() as connection:
        await connection.execute(FILL)
        assert await connection.scalar(text("SELECT pg_relation_size('relmsg.inbox_message')")) > 1024 * 1024
        await connection.execute(text("DROP INDEX relmsg.inbox_message_handled_at"))
    async with empty_engine.connect() as holder, empty_engine.connect() as writer:
        await holder.execute(INSERT)
        if left == "broken":
            async with empty_engine.connect() as building:
                building = await building.execution_options(isolation_level="AUTOCOMMIT")
                await building.execute(text("SET statement_timeout = '500ms'"))
                with pytest.raises(DBAPIError, match="statement timeout"):
                    await building.execute(BUILD)
            assert await writer.scalar(BROKEN)
            await writer.rollback()
        upgrading = asyncio.create_task(migrate.upgrade(empty_url))
        for _ in range(30):
            async with writer.begin():
                await writer.execute(text("SET LOCAL lock_timeout = '1s'"))
                await writer.execute(INSERT)
            await asyncio.sleep(0.1)
        assert not upgrading.done()  # the lock is still held, so all of these wrote beside the upgrade
        await holder.rollback()
        async with asyncio.timeout(60):
            assert await upgrading == []
    assert await migrate.check(empty_engine) == []


MIGRATION = '''"""Made by a test."""

from alembic import op

revision = "{name}"
down_revision = "{after}"
branch_labels = None
depends_on = None
oldest_compatible = "0002"
alters = ["{table}"]
concurrent_indexes = []


def upgrade() -> None:
    op.execute("ALTER TABLE relmsg.{table} ADD COLUMN region text")
'''
PUBLISH = text("INSERT INTO relmsg.outbox_message (exchange, routing_key, body) VALUES ('shop', 'r', '')")
WRITES = {"outbox_message": PUBLISH, "inbox_message": INSERT}
WAITING = text(
    "SELECT xact_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND query LIKE 'ALTER TABLE%'"
)


@pytest.mark.parametrize("table", WRITES)
async def test_a_table_is_altered_and_no_writer_waits_a_second(empty_url, empty_engine, tmp_path, monkeypatch, table):
    """While a long transaction holds the table, an upgrade tries again and again, each insert passes, and in the end
    the table is altered."""
    await migrate.upgrade(empty_url)
    newest = migrate._known()[-1].name
    name = f"{int(newest) + 1:04d}"
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.location(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / f"{name}_made.py").write_text(MIGRATION.format(name=name, after=newest, table=table))
    monkeypatch.setattr(migrate, "location", lambda: folder)
    tries = set()
    async with empty_engine.connect() as holder, empty_engine.connect() as writer, empty_engine.connect() as looking:
        looking = await looking.execution_options(isolation_level="AUTOCOMMIT")
        await holder.execute(WRITES[table])
        upgrading = asyncio.create_task(migrate.upgrade(empty_url))
        async with asyncio.timeout(60):
            while len(tries) < 3:
                async with writer.begin():
                    await writer.execute(text("SET LOCAL lock_timeout = '1s'"))
                    await writer.execute(WRITES[table])
                tries.update(await looking.scalars(WAITING))
        assert not upgrading.done()
        await holder.rollback()
        async with asyncio.timeout(60):
            assert await upgrading == [name]
        columns = await looking.scalar(text(f"SELECT count(region) FROM relmsg.{table}"))
    assert columns == 0
