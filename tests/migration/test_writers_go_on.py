"""Upgrading a table that is not small, while a session holds a lock on it and others write."""

from __future__ import annotations

import asyncio

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
