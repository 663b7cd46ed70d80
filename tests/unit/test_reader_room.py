"""What the reader asks of the outbox is bounded, whatever waits there."""

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
from relmsg.outbox.positions import Positions
from relmsg.outbox.reader import READ_AHEAD, Reader
from relmsg.outbox.row import Destination, Row

ROOM = 62  # of one slot of 64, at a batch of 500


class NothingMore:
    """An outbox with no rows but those in memory; it takes note of what it was asked for hot keys."""

    def __init__(self) -> None:
        self.refills: list[Sequence[tuple[HotKey, int]]] = []

    async def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    async def tops(self, _: Any) -> list[tuple[int, int]]:
        return []

    async def read(self, *_: Any) -> list[Any]:
        return []

    async def refill(self, wanted: Sequence[tuple[HotKey, int]], _: Any) -> list[Any]:
        self.refills.append(wanted)
        return []


async def test_hot_keys_of_a_slot_share_its_room() -> None:
    """Sixteen hot keys that drain at the same time are not all filled up at once: the slot has room for three."""
    pending, store = Pending(), NothingMore()

    async def park(_: Any) -> None:
        raise AssertionError

    reader = Reader(
        store,  # type: ignore[arg-type]
        pending,
        Positions(),
        Holds(),
        park,
        metrics=RelayMetrics(),
        clock=SystemClock(),
        batch=500,
        max_body_bytes=1,
    )
    assert READ_AHEAD * 500 // 64 == ROOM
    reader.follow(frozenset(range(64)))
    for key in range(HOT_PER_SLOT):
        for place in range(ROOM // 2 + 1):
            publish = Publication(str(place), "", "q", b"", b"")
            pending.admit(Row(1000 * key + place + 1, 0, f"key {key}", Destination("", "q"), publish))
    for _ in range(ROOM // 2 - 2):
        for row in pending.take(HOT_PER_SLOT, unless=lambda _: False):
            pending.done(row)
    assert (len(pending.refill()), pending.in_slot(0)) == (HOT_PER_SLOT, 2 * HOT_PER_SLOT)

    await reader.read()

    (wanted,) = store.refills
    assert [room for _, room in wanted] == [ROOM // 2 - 2] * 3
    assert pending.in_slot(0) + sum(room for _, room in wanted) <= 2 * ROOM
