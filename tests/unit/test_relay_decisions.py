"""What a receipt means, how destinations wait, and from where slots are read: pure decisions of the relay."""

from __future__ import annotations

import pytest

from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.outbox.consequence import Consequence, consequence
from relmsg.outbox.holds import MOST_HOLDS, Holds
from relmsg.outbox.positions import SWEEP_SECONDS, WINDOW_SECONDS, Positions, Range
from relmsg.outbox.row import Destination
from tests.unit.test_pending import row

LOST = ConnectionError("lost")


@pytest.mark.parametrize(
    ("receipt", "among_others", "alone"),
    [
        (Confirmed("m"), Consequence.DELETE, Consequence.DELETE),
        (Returned("m", "x", "k"), Consequence.HOLD_DESTINATION, Consequence.HOLD_DESTINATION),
        (Nacked("m"), Consequence.HOLD_DESTINATION, Consequence.HOLD_DESTINATION),
        (Unknown("m", LOST), Consequence.RESEND, Consequence.RESEND),
        (Unknown("m", TimeoutError()), Consequence.RESEND, Consequence.RESEND),
        (Unknown("m", LOST, 320), Consequence.RESEND, Consequence.RESEND),
        (Unknown("m", LOST, 504), Consequence.RESEND, Consequence.RESEND),
        (Unknown("m", LOST, 541), Consequence.RESEND, Consequence.RESEND),
        (Unknown("m", LOST, 404), Consequence.ISOLATE, Consequence.HOLD_EXCHANGE),
        (Unknown("m", LOST, 403), Consequence.ISOLATE, Consequence.HOLD_EXCHANGE),
        (Unknown("m", LOST, 406), Consequence.ISOLATE, Consequence.PARK),
        (Unknown("m", LOST, 501), Consequence.ISOLATE, Consequence.PARK),
        (Unknown("m", LOST, 540), Consequence.ISOLATE, Consequence.PARK),
    ],
)
def test_every_receipt_has_one_consequence(receipt: Receipt, among_others: Consequence, alone: Consequence) -> None:
    """A row is parked, or its exchange held, only on proof: when it was alone on its channel."""
    assert consequence(receipt, alone=False) is among_others
    assert consequence(receipt, alone=True) is alone


def test_a_held_destination_waits_longer_each_time_up_to_a_minute() -> None:
    """The wait doubles from 1 s to 60 s, jittered downwards by half at most."""
    holds = Holds(chance=lambda: 1.0)
    place, probe = Destination("x", "k"), row(1)
    waits = [holds.put(place, probe, "no route", now=100.0).until - 100.0 for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert Holds(chance=lambda: 0.0).put(place, probe, "no route", now=0.0).until == 0.5


def test_a_held_exchange_covers_all_its_routing_keys() -> None:
    """A missing exchange holds everything meant for it, and nothing else."""
    holds = Holds()
    hold = holds.put(Destination("x", None), row(1), "gone", now=0.0)
    assert holds.covers(Destination("x", "any"))
    assert not holds.covers(Destination("y", "any"))
    holds.release(hold)
    assert not holds.covers(Destination("x", "any"))


def test_too_many_held_routing_keys_are_held_by_exchange() -> None:
    """The list of holds goes into every read, so it has an end."""
    holds = Holds()
    for number in range(MOST_HOLDS + 5):
        holds.put(Destination("x", str(number)), row(number), "no route", now=0.0)
    assert len(holds) == MOST_HOLDS + 1
    assert holds.covers(Destination("x", "never seen"))


def test_the_first_reads_of_a_slot_begin_at_its_beginning() -> None:
    """A slot that is new here is read from id 0, page by page."""
    positions = Positions()
    positions.own([3])
    ranges = positions.ranges(lambda _: 2, now=0.0)
    assert ranges == [Range(3, 0, 2)]
    positions.seen(ranges, [(3, 10), (3, 11)], cut=False)
    assert positions.ranges(lambda _: 2, now=0.1) == [Range(3, 11, 2)]


def test_reads_look_back_over_the_trailing_window() -> None:
    """D1: what was read less than the window ago may still get smaller neighbours, so it stays above the low bound."""
    positions = Positions()
    positions.own([0])
    for moment, row_id in ((0.0, 10), (5.0, 20)):
        ranges = positions.ranges(lambda _: 5, now=moment)
        positions.seen(ranges, [(0, row_id)], cut=False)
    assert positions.ranges(lambda _: 5, now=9.0)[0].low == 0
    later = positions.ranges(lambda _: 5, now=5.0 + WINDOW_SECONDS)[0].low
    assert later in (0, 10)
    for second in range(16, 30):
        positions.seen(positions.ranges(lambda _: 5, now=float(second)), (), cut=False)
    assert positions.ranges(lambda _: 5, now=30.0)[0].low == 20


def test_once_a_minute_everything_is_read_again() -> None:
    """A transaction that was open longer than the window is found by the sweep."""
    positions = Positions()
    positions.own([0])
    positions.seen(positions.ranges(lambda _: 5, now=61.0), [(0, 50)], cut=False)
    for second in range(62, 90):
        positions.seen(positions.ranges(lambda _: 5, now=float(second)), (), cut=False)
    assert positions.ranges(lambda _: 5, now=90.0)[0].low == 50
    swept = positions.ranges(lambda _: 5, now=62.0 + SWEEP_SECONDS)
    assert swept == [Range(0, 0, 5)]
    positions.seen(swept, [(0, 7)], cut=False)
    assert not positions.sweeping


def test_a_read_that_was_cut_ends_no_sweep() -> None:
    """Where the byte limit held rows back, the slot is read on from where it stopped."""
    positions = Positions()
    positions.own([0, 1])
    ranges = positions.ranges(lambda _: 5, now=0.0)
    positions.seen(ranges, [(0, 3)], cut=True)
    assert positions.sweeping
    assert positions.ranges(lambda _: 5, now=0.1) == [Range(0, 3, 5), Range(1, 0, 5)]


def test_a_full_slot_is_not_read() -> None:
    """A slot without room is left out, so that one busy key cannot fill the memory."""
    positions = Positions()
    positions.own([0, 1])
    assert [each.slot for each in positions.ranges(lambda slot: slot, now=0.0)] == [1]
