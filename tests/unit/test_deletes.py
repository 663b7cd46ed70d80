"""How confirmed rows leave the table: together, and no later than they must."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from relmsg.outage import Outage
from relmsg.outbox.deletes import FEW, FEW_SECONDS, Deletes
from relmsg.outbox.notes import Notes
from relmsg.outbox.pending import Pending
from relmsg.outbox.progress import Progress
from tests.unit.test_pending import row


class Table:
    """Takes note of what is deleted by one statement."""

    def __init__(self) -> None:
        self.deleted: list[list[int]] = []

    async def delete(self, ids: Iterable[int]) -> None:
        self.deleted.append(list(ids))


class Waited:
    """A clock that stands still, and goes on when somebody has slept and ``go_on`` is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        self.go_on = asyncio.Event()

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await self.go_on.wait()
        self.now += seconds


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def deleting() -> Any:
    table, clock, pending = Table(), Waited(), Pending()
    given: Any = table
    notes = Notes(given, pending, clock=clock, database=Outage("PostgreSQL"))
    deletes = Deletes(given, pending, notes, progress=Progress(0.0, stall_seconds=30), clock=clock)
    task = asyncio.create_task(deletes.keep_deleting())
    yield deletes, table, clock
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_rows_that_are_confirmed_one_by_one_are_deleted_together(deleting: Any) -> None:
    """The first row goes at once; what follows within ten milliseconds goes in one statement at their end."""
    deletes, table, clock = deleting
    deletes.add([row(1)])
    await turns()
    assert table.deleted == [[1]]
    for number in (2, 3, 4):
        deletes.add([row(number)])
        await turns()
    assert (table.deleted, clock.sleeps) == ([[1]], [FEW_SECONDS])
    clock.go_on.set()
    await deletes.finished()
    assert table.deleted == [[1], [2, 3, 4]]


async def test_many_rows_and_rows_after_a_pause_are_deleted_at_once(deleting: Any) -> None:
    """Neither a batch nor the row of a quiet service waits for company."""
    deletes, table, clock = deleting
    deletes.add([row(1)])
    await turns()
    deletes.add([row(number) for number in range(2, FEW + 2)])
    await turns()
    clock.now += FEW_SECONDS
    deletes.add([row(500)])
    await turns()
    assert [len(ids) for ids in table.deleted] == [1, FEW, 1]
    assert not clock.sleeps
