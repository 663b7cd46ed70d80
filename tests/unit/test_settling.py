"""What becomes of rows whose publishes have ended, and in which order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.errors import BrokerAway, DatabaseAway
from relmsg.outage import Outage
from relmsg.outbox.deletes import Deletes
from relmsg.outbox.holds import Holds
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.notes import Notes
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import Positions
from relmsg.outbox.progress import Health, Progress
from relmsg.outbox.row import Destination, Row
from relmsg.outbox.settle import Settler
from relmsg.outbox.store import WaitReason
from relmsg.outbox.summary import LINES
from tests.unit.test_pending import row


class Table:
    """Takes note of what is written, in order; refuses it while ``refuses`` is set."""

    def __init__(self) -> None:
        self.written: list[tuple[str, list[int]]] = []
        self.refuses = False

    async def delete(self, ids: Iterable[int]) -> None:
        self._write("delete", ids)

    async def note(self, reasons: Sequence[WaitReason]) -> None:
        self._write("note", [each.id for each in reasons])

    async def park(self, reasons: Sequence[tuple[int, str]]) -> None:
        self._write("park", [row_id for row_id, _ in reasons])

    async def unchanged(self, rows: Sequence[Row]) -> set[int]:
        return {each.id for each in rows}

    def _write(self, what: str, ids: Iterable[int]) -> None:
        if self.refuses:
            raise DatabaseAway
        self.written.append((what, sorted(ids)))


class Stepped:
    """A clock that is set by hand; whoever sleeps gives way once."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, _: float) -> None:
        await asyncio.sleep(0)


@dataclass
class Bench:
    """A settler with all that it works on."""

    table: Table = field(default_factory=Table)
    clock: Stepped = field(default_factory=Stepped)
    pending: Pending = field(default_factory=Pending)
    holds: Holds = field(default_factory=Holds)
    owned: set[int] = field(default_factory=lambda: set(range(64)))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        database, broker = Outage("PostgreSQL"), Outage("RabbitMQ")
        self.progress = Progress(0.0, stall_seconds=30)
        table: Any = self.table
        self.notes = Notes(table, self.pending, clock=self.clock, database=database)
        self.deletes = Deletes(
            table, self.pending, self.notes, progress=self.progress, clock=self.clock, database=database
        )
        self.health = Health(
            self.pending,
            self.holds,
            self.progress,
            database=database,
            broker=broker,
            confirm_deadline=30,
            clock=self.clock,
        )
        self.settler = Settler(
            table,
            self.pending,
            Positions(),
            self.holds,
            self.deletes,
            self.notes,
            None,  # type: ignore[arg-type]
            broker=broker,
            owned=lambda: self.owned,
            metrics=RelayMetrics(),
            progress=self.progress,
            clock=self.clock,
            deadline=30,
            wake=lambda: None,
        )
        self.tasks = [
            asyncio.create_task(self.deletes.keep_deleting()),
            asyncio.create_task(self.notes.keep_writing()),
        ]

    def send(self, *rows: Row) -> list[Row]:
        for each in rows:
            self.pending.admit(each)
        return self.pending.take(len(rows), unless=lambda _: False)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def unroutable(each: Row) -> Returned:
    return Returned(str(each.id), *each.destination, 312, "NO_ROUTE")  # type: ignore[arg-type]


def places(count: int) -> list[Row]:
    return [row(number, place=Destination("shop", f"key {number}")) for number in range(1, count + 1)]


async def test_the_next_of_a_key_may_go_before_anything_is_written(bench: Bench) -> None:
    """C6: of a batch whose other rows came back the confirmed ones are freed at once, and one statement writes why the
    others wait."""
    first, second = row(1, "k"), row(2, "k")
    others = [row(number, place=Destination("shop", f"key {number}")) for number in range(3, 253)]
    batch = bench.send(first, *others)
    bench.pending.admit(second)
    bench.table.refuses = True
    settling = asyncio.create_task(
        bench.settler.settle(batch, [Confirmed("1"), *(unroutable(each) for each in others)], alone=False)
    )
    await asyncio.sleep(0)
    assert bench.pending.take(1, unless=lambda _: False) == [second]
    bench.table.refuses = False
    await settling
    await turns()
    assert sorted(bench.table.written) == [("delete", [1]), ("note", list(range(3, 253)))]


async def test_a_batch_does_not_wait_until_the_database_takes_its_notes(bench: Bench) -> None:
    """What the table refuses is written later, and the newest word counts; the batch is over before."""
    (held, parked) = batch = bench.send(row(1), row(2))
    bench.table.refuses = True
    await bench.settler.settle([held], [Nacked("1")], alone=False)
    await bench.settler.settle([parked], [Unknown("2", BrokerAway(), 406)], alone=True)
    assert bench.table.written == []
    assert bench.pending.known_above({0: 0}) == [each.id for each in batch], "a row to be parked is not read again"
    bench.table.refuses = False
    await turns()
    assert sorted(bench.table.written) == [("note", [1]), ("park", [2])]
    assert bench.pending.known_above({0: 0}) == [1]


@pytest.mark.parametrize(
    "receipt",
    [
        Unknown("1", BrokerAway()),
        Unknown("1", BrokerAway(), 404),
        Returned("1", "x", "1", 312, "NO_ROUTE"),
        Nacked("1"),
    ],
)
@pytest.mark.parametrize("back", [False, True])
async def test_a_row_whose_slot_was_lost_while_it_was_out_is_not_sent_again(
    bench: Bench, receipt: Receipt, back: bool
) -> None:
    """C7: another relay owns it now. It is not made ready, held, noted or tried alone by the old owner, also where the
    slot has come back meanwhile: then it is read anew, if it is still there."""
    (out, behind) = row(1, "k"), row(2, "k")
    batch = bench.send(out, behind)
    assert batch == [out]
    bench.pending.forget_slots([0])
    if not back:
        bench.owned.clear()
    await bench.settler.settle(batch, [receipt], alone=False)
    await turns()
    assert bench.pending.ready == 0
    assert len(bench.pending) == len(bench.holds) == 0
    assert bench.table.written == []
    assert bench.pending.left_unread([0])
    assert not bench.pending.left_unread([0])


async def test_a_row_of_a_lost_slot_that_was_confirmed_is_deleted(bench: Bench) -> None:
    """What this relay saw confirmed is in the broker, whoever owns the slot."""
    batch = bench.send(row(1))
    bench.pending.forget_slots([0])
    await bench.settler.settle(batch, [Confirmed("1")], alone=False)
    await turns()
    assert bench.table.written == [("delete", [1])]


async def test_a_probe_is_not_sent_while_its_slot_is_not_ours(bench: Bench) -> None:
    """A held row whose lease has run out is another relay's to try."""
    (held,) = bench.send(row(1))
    await bench.settler.settle([held], [unroutable(held)], alone=False)
    bench.owned.clear()
    bench.clock.now = 3600.0
    probing = asyncio.create_task(bench.settler.keep_probing())
    await turns()
    assert not probing.done(), "there is no connection here to try it on"
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)


async def test_a_thousand_unroutable_keys_are_twenty_lines_a_minute(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """C8: a destination is told once a minute at most, twenty of them by name, and the others by their number."""
    caplog.set_level(logging.INFO)
    bench.owned.clear()
    probing = asyncio.create_task(bench.settler.keep_probing())
    rows = bench.send(*places(1000))
    for minute in range(3):
        for second in (0, 7, 14, 59):
            bench.clock.now = 60.0 * minute + second
            await bench.settler.settle(rows, [unroutable(each) for each in rows], alone=True)
            await turns()
    lines = [record.getMessage() for record in caplog.records]
    assert sum("waits" in line for line in lines) == 3 * LINES
    summary = "and 980 more destinations lead nowhere for now; `relmsg outbox status` shows them"
    assert [line for line in lines if "waits" not in line] == [summary] * 3
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)


async def test_a_relay_is_not_live_when_due_rows_do_not_move(bench: Bench) -> None:
    """C1: rows are due and no publish has ended for a minute, though no service is away: nobody is left who would end
    the wait. Held rows are not due, and any outcome of a publish counts."""
    (held,) = bench.send(row(1))
    await bench.settler.settle([held], [unroutable(held)], alone=False)
    for bench.clock.now in (0.0, 1000.0):
        bench.health.turned()
        assert bench.health.live() is None
        assert bench.health.ready() is None
    (out,) = bench.send(row(2))
    for bench.clock.now in (1000.0, 1031.0, 1059.0):
        bench.health.turned()
    assert bench.health.live() is None
    assert "none gets through" in (bench.health.ready() or "")
    bench.clock.now = 1061.0
    bench.health.turned()
    assert "nothing was sent" in (bench.health.live() or "")
    await bench.settler.settle([out], [Unknown("2", BrokerAway())], alone=False)
    assert bench.health.live() is None, "the broker does not confirm, but the relay goes on"
    bench.clock.now = 1070.0
    bench.health.turned()
    assert bench.health.ready() is not None
    bench.clock.now = 1200.0
    assert "has not turned" in (bench.health.live() or "")
