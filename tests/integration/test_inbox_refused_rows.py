"""A trigger or a constraint of the user's keeps one handled message: the inbox forgets the others."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from sqlalchemy import text

from relmsg.errors import RelmsgError
from relmsg.inbox.memory import Memory
from relmsg.inbox.pruner import Pruner
from relmsg.inbox.pruning import BATCH, DEFAULT_WINDOW, Pruning

FUNCTION = """
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.source = 'held' THEN RAISE EXCEPTION 'this row is evidence' USING ERRCODE = '23503'; END IF;
    RETURN OLD;
END $$
"""
TRIGGERS = {
    "at once": "CREATE TRIGGER keep BEFORE DELETE ON relmsg.inbox_message FOR EACH ROW EXECUTE FUNCTION keep()",
    "at the commit": "CREATE CONSTRAINT TRIGGER keep AFTER DELETE ON relmsg.inbox_message DEFERRABLE INITIALLY "
    "DEFERRED FOR EACH ROW EXECUTE FUNCTION keep()",
}
REMEMBER = """
INSERT INTO relmsg.inbox_message (consumer, source, message_id, handled_at)
SELECT 'billing', CAST(:source AS text), CAST(i AS text),
       date_trunc('day', now()) - CAST(:days AS int) * interval '1 day' + i * CAST(:step AS interval)
  FROM generate_series(1, CAST(:count AS int)) AS i
"""


class Rounds:
    """A clock that lets a pruner make one round, and ends it when it would wait for the next."""

    def monotonic(self):
        return 0.0

    async def sleep(self, seconds):
        if seconds > 100:
            raise asyncio.CancelledError


async def remember(engine, source, count, *, days=40, step=1):
    async with engine.begin() as connection:
        values = {"source": source, "count": count, "days": days, "step": timedelta(seconds=step)}
        await connection.execute(text(REMEMBER), values)


async def keep(engine, when):
    async with engine.begin() as connection:
        await connection.exec_driver_sql(FUNCTION)
        await connection.exec_driver_sql(TRIGGERS[when])


async def remembered(engine):
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT source, count(*) FROM relmsg.inbox_message GROUP BY 1"))
        return dict(map(tuple, rows))


async def one_round(sessions):
    with pytest.raises(asyncio.CancelledError):
        await Pruner(sessions, Pruning(), {"billing"}, DEFAULT_WINDOW, Rounds(), lambda: 0.0).run()


@pytest.mark.parametrize("when", TRIGGERS)
@pytest.mark.parametrize("held", [1, 20])
async def test_a_message_that_may_not_be_forgotten_keeps_no_other(when, held, engine, sessions, caplog):
    """Also where the oldest are kept, and where the database would tell it at the commit only; one line tells it."""
    caplog.set_level(logging.INFO, "relmsg")
    await remember(engine, "held", held, days=50)
    await remember(engine, "s", BATCH + 200)
    await remember(engine, "young", 2, days=1)
    await keep(engine, when)
    await one_round(sessions)
    assert await remembered(engine) == {"held": held, "young": 2}
    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert f"{held} handled messages cannot be forgotten" in line
    assert "this row is evidence" in line


async def test_kept_messages_of_one_moment_end_no_round_early(engine, sessions, caplog):
    """More than two batches of one moment, some kept: the others are forgotten, and each is counted once."""
    await remember(engine, "held", 30, step=0)
    await remember(engine, "s", 2 * BATCH + 100, step=0)
    await remember(engine, "later", 5, days=35)
    await keep(engine, "at once")
    await one_round(sessions)
    assert await remembered(engine) == {"held": 30}
    assert "30 handled messages cannot be forgotten" in caplog.text


async def test_a_trigger_that_keeps_all_messages_ends_the_round_and_is_told(engine, sessions, caplog):
    """Three batches are tried and no more."""
    caplog.set_level(logging.INFO, "relmsg")
    await remember(engine, "held", 4 * BATCH)
    await keep(engine, "at once")
    await one_round(sessions)
    assert await remembered(engine) == {"held": 4 * BATCH}
    assert "the inbox was not pruned" in caplog.text


async def test_pruning_by_hand_forgets_the_others_and_tells_what_was_kept(engine):
    """`relmsg inbox prune` does what it can, and fails with the number of those that stay."""
    await remember(engine, "held", 3, days=50)
    await remember(engine, "s", 50)
    await keep(engine, "at once")
    memory = Memory(engine, "relmsg")
    due = await memory.due("billing", None)
    with pytest.raises(RelmsgError, match=r"3 messages of 'billing' cannot be forgotten.*this row is evidence"):
        await memory.prune("billing", due["billing"][1], lambda _rows: None)
    assert await remembered(engine) == {"held": 3}
