"""Forgetting reads only what it forgets, in a table with real statistics, whatever the planner thinks of it."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from relmsg.inbox.pruning import BATCH, BEGIN, DEFAULT_WINDOW, FORGET, Pruning

ROWS = 200_000
FILL = f"""
INSERT INTO relmsg.inbox_message (consumer, source, message_id, handled_at)
SELECT 'c' || i % 3, 's', i::text, now() - interval '60 days' * (1 - i / {ROWS}.0) FROM generate_series(1, {ROWS}) i
"""


@pytest.fixture
async def filled(engine):
    """Two hundred thousand remembered messages of three consumers over sixty days, vacuumed and analyzed."""
    async with engine.begin() as connection:
        await connection.execute(text(FILL))
    async with engine.connect() as connection:
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await plain.execute(text("VACUUM (ANALYZE) relmsg.inbox_message"))
    return engine


async def plan_of_a_batch(engine, since):
    """The plan of one batch, with what it read, as text; nothing is forgotten."""
    async with engine.connect() as connection:
        await connection.execute(Pruning()._sql(BEGIN), {"consumer": "c1", "schema": "relmsg"})
        before = await Pruning().before(connection, DEFAULT_WINDOW)
        explained = Pruning()._sql("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) " + FORGET)
        lines = await connection.scalars(explained, {"consumer": "c1", "before": before, "since": since})
        plan = "\n".join(lines)
        await connection.rollback()
    return plan


async def test_a_batch_reads_its_own_rows_by_the_index(filled):
    """One index scan of a thousand rows and a scan of their places: no sequential scan, no sort, few pages."""
    plan = await plan_of_a_batch(filled, None)
    assert re.search(r"Index (Only )?Scan using inbox_message_handled_at", plan), plan
    assert "Tid Scan" in plan
    assert "Seq Scan" not in plan
    assert "Sort" not in plan
    assert f"rows={BATCH}" in plan
    pages = [int(found) for found in re.findall(r"shared hit=(\d+)", plan)]
    assert max(pages) < 10 * BATCH, plan


async def test_a_table_that_was_analyzed_when_it_was_empty_is_pruned_by_the_index(engine):
    """Statistics that know of no rows do not bring a sequential scan."""
    async with engine.connect() as connection:
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await plain.execute(text("ALTER TABLE relmsg.inbox_message SET (autovacuum_enabled = off)"))
        await plain.execute(text("VACUUM (ANALYZE) relmsg.inbox_message"))
        await plain.execute(text(FILL))
    plan = await plan_of_a_batch(engine, None)
    assert "Seq Scan" not in plan, plan
    assert "Sort" not in plan


async def test_large_numbers_are_estimated(filled):
    """Above a hundred thousand rows the statistics tell, near enough; below, they are counted."""
    async with filled.begin() as connection:
        await connection.execute(text("UPDATE relmsg.inbox_message SET consumer = 'c1' WHERE consumer = 'c2'"))
        await connection.execute(text("ANALYZE relmsg.inbox_message"))
        rows, exact = await Pruning().count(connection, "c1")
        assert not exact
        assert abs(rows - ROWS * 2 / 3) < ROWS / 5
        assert await Pruning().count(connection, "c0") == (ROWS // 3, True)
