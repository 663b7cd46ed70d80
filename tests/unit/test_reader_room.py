"""What the reader asks of the outbox, and when, whatever waits there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from relmsg.broker.wire import Publication
from relmsg.clock import SystemClock
from relmsg.outbox.holds import Holds
from relmsg.outbox.hot import HOT_PER_SLOT, HotKey
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import NO_END, Positions, Range
from relmsg.outbox.reader import READ_AHEAD, Reader
from relmsg.outbox.row import Destination, Row

ROOM = 62  # of one slot of 64, at a batch of 500


class NothingMore:
    """An outbox with no rows but those in memory; it takes note of what it was asked for hot keys."""

    def __init__(self) -> None:
        self.refills: list[Sequence[tuple[HotKey, int]]] = []
        self.reads = 0
        self.ranges: list[Sequence[Range]] = []

    async def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    async def tops(self, _: Any) -> list[tuple[int, int]]:
        return []

    async def writers(self) -> list[str]:
        return []

    async def bottoms(self, _: Any) -> list[tuple[int, int]]:
        return []

    async def read(self, ranges: Sequence[Range], *_: Any) -> list[Any]:
        self.reads += 1
        self.ranges.append(ranges)
        return []

    async def refill(self, wanted: Sequence[tuple[HotKey, int]], _: Any) -> list[Any]:
        self.refills.append(wanted)
        return []


class Standing:
    """A clock that goes on only by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, _: float) -> None:
        raise AssertionError


def reader_of(store: NothingMore, pending: Pending, positions: Positions, clock: Any = None) -> Reader:
    async def park(_: Any) -> None:
        raise AssertionError

    return Reader(
        store,  # type: ignore[arg-type]
        pending,
        positions,
        Holds(),
        park,
        metrics=RelayMetrics(),
        clock=clock or SystemClock(),
        batch=500,
        max_body_bytes=1,
    )


async def test_under_constant_traffic_late_rows_wait_fifty_milliseconds_at_most() -> None:
    """While every poll finds new rows the look-back is put off, not for ever; without new rows it is made at once."""
    store, clock, positions = NothingMore(), Standing(), Positions()
    reader = reader_of(store, Pending(), positions, clock)
    reader.follow(frozenset([0]))
    positions.seen(positions.forward(lambda _: 1), [(0, 7)], cut=False)
    looked = []
    for clock.now in (100.0, 100.02, 100.049, 100.051, 100.06, 100.102):
        await reader.read_late(busy=True)
        looked.append(store.reads)
    assert looked == [1, 1, 1, 2, 2, 3]
    await reader.read_late()
    assert store.reads == 4


def heated(pending: Pending, key: str, first: int, slot: int = 0) -> None:
    """One row more of a key than its lane takes."""
    for place in range(ROOM // 2 + 1):
        publish = Publication(str(place), "", "q", b"", b"")
        pending.admit(Row(first + place, slot, key, Destination("", "q"), publish))


async def test_the_slot_of_a_hot_key_is_stepped_through_beside_the_others() -> None:
    """What lies behind a million rows of one key costs the other slots nothing: they are read first, whole, and without
    it; then comes a piece of its slot, with room for what is found at last. At its end it is a slot like any other."""
    pending, store, positions = Pending(), NothingMore(), Positions()
    reader = reader_of(store, pending, positions)
    reader.follow(frozenset(range(64)))
    positions.mark([(0, 1_000_000)], 0.0, [])
    heated(pending, "hot", 1)

    await reader.read()
    assert await reader.step()

    others, (piece,) = store.ranges
    assert [each.slot for each in others] == list(range(1, 64))
    assert {each.high for each in others} == {NO_END}
    assert (piece.slot, piece.high) == (0, 1_000_000), "no row was found below that"
    assert piece.room > 10 * ROOM
    store.ranges.clear()

    await reader.read()
    assert not await reader.step()

    (together,) = store.ranges
    assert len(together) == 64


async def test_nothing_is_stepped_through_while_enough_is_ready() -> None:
    """The slot of a hot key is read as often as the others: not while two batches wait to be sent."""
    pending, store, positions = Pending(), NothingMore(), Positions()
    reader = reader_of(store, pending, positions)
    reader.follow(frozenset(range(64)))
    positions.mark([(0, 1_000_000)], 0.0, [])
    heated(pending, "hot", 1)
    for row_id in range(1000, 2000):
        pending.admit(Row(row_id, 1, None, Destination("", "q"), Publication(str(row_id), "", "q", b"", b"")))

    assert not await reader.read()
    assert not await reader.step()

    assert not store.ranges


async def test_hot_keys_of_a_slot_share_its_room() -> None:
    """Sixteen hot keys that drain at the same time are not all filled up at once: the slot has room for three."""
    pending, store = Pending(), NothingMore()

    reader = reader_of(store, pending, Positions())
    assert READ_AHEAD * 500 // 64 == ROOM
    reader.follow(frozenset(range(64)))
    for key in range(HOT_PER_SLOT):
        heated(pending, f"key {key}", 1000 * key + 1)
    for _ in range(ROOM // 2 - 2):
        for row in pending.take(HOT_PER_SLOT, unless=lambda _: False):
            pending.done(row)
    assert (len(pending.refill()), pending.in_slot(0)) == (HOT_PER_SLOT, 2 * HOT_PER_SLOT)

    await reader.read()

    (wanted,) = store.refills
    assert [room for _, room in wanted] == [ROOM // 2 - 2] * 3
    assert pending.in_slot(0) + sum(room for _, room in wanted) <= 2 * ROOM
