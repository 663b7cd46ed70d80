"""What a receipt means, how destinations wait, and from where slots are read: pure decisions of the relay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.outbox.consequence import Consequence, consequence
from relmsg.outbox.holds import MOST_HOLDS, Holds
from relmsg.outbox.pace import LEAST_SPAN, Pace
from relmsg.outbox.positions import (
    NO_END,
    SWEEP_SECONDS,
    WINDOW_SECONDS,
    Positions,
    Range,
    Round,
)
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
    """A slot that is new here is read from id 0, page by page, and nothing is read twice."""
    positions = Positions()
    positions.own([3])
    ranges = positions.forward(lambda _: 2)
    assert ranges == [Range(3, 0, 2)]
    assert positions.seen(ranges, [(3, 10), (3, 11)], cut=False)
    ranges = positions.forward(lambda _: 2)
    assert ranges == [Range(3, 11, 2)]
    assert not positions.seen(ranges, [], cut=False)


def test_whether_there_may_be_more_is_told_by_the_end_of_the_slot() -> None:
    """After a read that came to the end of each slot nobody reads again at once; after any other one somebody does."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 250)], 0.0, ["a writer"])
    whole = positions.forward(lambda _: 3)
    assert not positions.seen(whole, [(0, 1), (0, 2)], cut=False), "room for three, and two came"
    assert positions.seen(whole, [(0, 3), (0, 4), (0, 5)], cut=False), "as many came as there was room for"
    assert positions.seen(whole, [(0, 6)], cut=True), "the byte limit held rows back"
    assert positions.seen(positions.forward(lambda _: 3, 100), [(0, 7)], cut=False), "only a piece was looked over"


def test_a_read_that_leaves_rows_out_goes_in_pieces_up_to_the_known_end() -> None:
    """The frontier passes what a bounded read has left out, and never ids that may not exist yet."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 250)], 0.0, ["a writer"])
    reached = []
    for _ in range(4):
        ranges = positions.forward(lambda _: 5, 100)
        reached.append((ranges[0].low, ranges[0].high))
        positions.seen(ranges, [], cut=False)
    assert reached == [(0, 100), (100, 200), (200, 250), (250, NO_END)]


def test_ids_below_the_first_row_of_a_slot_are_passed_in_one_piece() -> None:
    """A table that has seen a billion rows is not gone through from id 0 in pieces; from its first row on it is, and
    where no row is left it is passed at once."""
    positions = Positions()
    positions.own([0, 1])
    positions.mark([(0, 1_000_250), (1, 7)], 0.0, ["a writer"])
    assert positions.bottomless == [0, 1]
    positions.begin([0, 1], [(0, 1_000_000)])
    assert not positions.bottomless
    assert [each.high for each in positions.forward(lambda _: 5, 100)] == [1_000_100, 7]
    positions.seen(positions.forward(lambda _: 5), [(0, 1_000_200)], cut=False)
    assert positions.look_back(1, 0.0).ranges(lambda _: 5, 100) == [Range(0, 0, 5, 1_000_100)]
    positions.rewind()
    assert positions.bottomless == [0, 1], "what was passed by may be anywhere"


def test_what_was_left_behind_is_looked_for_anew_by_each_sweep() -> None:
    """Rows that were passed by below the first row of old cost a sweep pieces: where the ids begin is asked again."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 900)], 0.0, ["a writer"])
    positions.begin([0], [(0, 800)])
    positions.seen(positions.forward(lambda _: 5), [(0, 900)], cut=False)
    positions.sweep(0.0)
    sweep = positions.sweep(SWEEP_SECONDS)
    assert sweep is not None
    assert positions.bottomless == [0]
    positions.begin([0], [(0, 10)])
    assert sweep.ranges(lambda _: 5, 100) == [Range(0, 0, 5, 110)]


def test_a_read_that_was_full_or_cut_goes_on_from_its_last_row() -> None:
    """Where the room or the byte limit held rows back, the slot is read on from where it stopped."""
    positions = Positions()
    positions.own([0, 1])
    positions.mark([(0, 900), (1, 900)], 0.0, ["a writer"])
    ranges = positions.forward(lambda _: 2, 500)
    positions.seen(ranges, [(0, 3), (0, 7), (1, 5)], cut=False)
    assert [each.low for each in positions.forward(lambda _: 2, 500)] == [7, 500]
    ranges = positions.forward(lambda _: 2, 100)
    positions.seen(ranges, [(0, 9)], cut=True)
    assert [each.low for each in positions.forward(lambda _: 2, 100)] == [9, 500]


def test_in_a_backlog_there_is_nothing_to_look_back_at() -> None:
    """Rows whose ids were given longer ago than the window need no look-back, however fast they are read."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 1000)], 0.0, ["a writer"])
    assert positions.look_back(1, WINDOW_SECONDS).left == {}
    positions.looked_back()
    positions.seen(positions.forward(lambda _: 5), [(0, 600)], cut=False)
    assert not positions.open(0)
    assert positions.look_back(2, WINDOW_SECONDS + 1).left == {}
    positions.looked_back()
    positions.seen(positions.forward(lambda _: 5), [(0, 1200)], cut=False)
    assert positions.open(0)
    assert positions.look_back(3, WINDOW_SECONDS + 2).left == {0: (1000, 1200)}


def test_the_window_moves_on_only_behind_a_round_that_began_late_enough() -> None:
    """D1: an id stays in the window until a round is complete that began when the id was ten seconds old."""
    positions = Positions()
    positions.own([0])
    positions.seen(positions.forward(lambda _: 5), [(0, 100)], cut=False)
    positions.mark([(0, 100)], 0.0, ["a writer"])
    round_ = positions.look_back(1, WINDOW_SECONDS - 0.1)
    assert positions.look_back(2, WINDOW_SECONDS + 5) is round_
    round_.seen(round_.ranges(lambda _: 5, 1000), [], cut=False)
    positions.looked_back()
    assert positions.open(0)
    round_ = positions.look_back(3, WINDOW_SECONDS + 5)
    round_.seen(round_.ranges(lambda _: 5, 1000), [], cut=False)
    positions.looked_back()
    assert not positions.open(0)


def test_a_round_goes_piece_by_piece_and_waits_for_room() -> None:
    """A look-back covers its ids in pieces; a slot without room is left for later, a full piece is gone on with."""
    positions = Positions()
    positions.own([0, 1])
    positions.seen(positions.forward(lambda _: 9), [(0, 100), (1, 100)], cut=False)
    round_ = positions.look_back(1, 0.0)
    ranges = round_.ranges(lambda slot: 2 * slot, 60)
    assert ranges == [Range(1, 0, 2, 60)]
    round_.seen(ranges, [(1, 10), (1, 20)], cut=False)
    assert round_.left == {0: (0, 100), 1: (20, 100)}
    for _ in range(2):
        round_.seen(round_.ranges(lambda _: 2, 60), [], cut=False)
    assert not round_.left


def test_once_a_minute_everything_up_to_the_frontier_is_read_again() -> None:
    """A transaction that was open longer than the window is found by the sweep."""
    positions = Positions()
    positions.own([0])
    positions.seen(positions.forward(lambda _: 5), [(0, 50)], cut=False)
    assert positions.sweep(0.0) is None
    sweep = positions.sweep(SWEEP_SECONDS)
    assert sweep is not None
    ranges = sweep.ranges(lambda _: 5, 1000)
    assert ranges == [Range(0, 0, 5, 50)]
    sweep.seen(ranges, [(0, 7)], cut=False)
    assert positions.sweep(SWEEP_SECONDS + 1) is None


def test_a_rewind_reads_everything_again_and_ends_what_was_under_way() -> None:
    """When a destination is released all slots are read from their beginning; reads under way can tell by the epoch."""
    positions = Positions()
    positions.own([0])
    positions.seen(positions.forward(lambda _: 5), [(0, 50)], cut=False)
    positions.look_back(1, 0.0)
    before = positions.epoch
    positions.rewind()
    assert positions.epoch != before
    assert positions.forward(lambda _: 5) == [Range(0, 0, 5)]
    assert positions.look_back(2, 0.0).left == {}


def test_a_full_slot_is_not_read() -> None:
    """A slot without room is left out, so that one busy key cannot fill the memory."""
    positions = Positions()
    positions.own([0, 1])
    assert [each.slot for each in positions.forward(lambda slot: slot)] == [1]


def test_expensive_work_takes_its_share_and_cheap_work_is_never_held_back() -> None:
    """A piece that took 40 ms is followed by 360 ms of rest and a smaller one; 1 ms costs nothing."""
    pace = Pace()
    span = pace.span
    pace.spent(0.04, now=10.0)
    assert (pace.due(10.3), pace.due(10.4), pace.span) == (False, True, span // 2)
    pace.spent(0.001, now=11.0)
    assert (pace.due(11.0), pace.span) == (True, span)
    pace.spent(2.0, now=12.0)
    assert pace.span == max(LEAST_SPAN, span // 100), "what took a hundred times too long is not tried by halves"


def test_a_piece_that_an_outage_held_up_is_followed_by_a_short_rest() -> None:
    """Half a minute in which the database stood still is no reason to look for late rows five minutes later only."""
    pace = Pace()
    pace.spent(30.0, now=40.0)
    assert (pace.due(44.9), pace.due(45.0)) == (False, True)


class Table:
    """Rows of one slot that become visible in any order, and a reader that goes over them as the relay's does."""

    def __init__(self, room: int, span: int) -> None:
        self.positions = Positions()
        self.positions.own([0])
        self.room, self.span = room, span
        self.visible: set[int] = set()
        self.got: list[int] = []
        self.reads = 0
        self.tells = False
        self.drawn = 0

    def _writers(self) -> list[str]:
        """Each row is a transaction, which is over when the row is visible; there may be others, without an end."""
        still_open = [str(row_id) for row_id in range(1, self.drawn + 1) if row_id not in self.visible]
        return still_open if self.tells else [*still_open, "endless"]

    def _page(self, each: Range) -> list[tuple[int, int]]:
        ids = sorted(row_id for row_id in self.visible - set(self.got) if each.low < row_id <= each.high)[: each.room]
        self.got += ids
        return [(0, row_id) for row_id in ids]

    def turn(self, now: float, *, bounded: bool) -> None:
        if self.positions.mark_due(now):
            known = self.positions.tops[0][1]
            top = max(self.visible, default=0)
            self.positions.mark([(0, top)] if top > known else [], now, self._writers())
        if slots := self.positions.bottomless:
            left = self.visible - set(self.got)
            self.positions.begin(slots, [(0, min(left))] if left else [])
        ranges = self.positions.forward(lambda _: self.room, self.span if bounded else None)
        self.positions.seen(ranges, self._page(ranges[0]), cut=False)
        self.reads += 1
        self.back(self.positions.look_back(self.reads, now))
        if not self.positions.look_back(self.reads, now).left:
            self.positions.looked_back()
        if (sweep := self.positions.sweep(now)) is not None:
            self.back(sweep)

    def back(self, round_: Round) -> None:
        for each in round_.ranges(lambda _: self.room, self.span):
            round_.seen([each], self._page(each), cut=False)
        self.positions.looked_at(round_)


@settings(max_examples=300, deadline=None)
@given(
    delays=st.lists(st.floats(0, 90), min_size=1, max_size=60),
    room=st.integers(1, 9),
    span=st.integers(1, 40),
    bounded=st.booleans(),
    tells=st.booleans(),
    begins=st.floats(0, 90),
)
def test_every_row_is_read_once_whenever_it_became_visible(
    delays: list[float], room: int, span: int, bounded: bool, tells: bool, begins: float
) -> None:
    """D1-D5: ids are given one a second and become visible after any delay; none is lost, and none comes twice."""
    table = Table(room, span)
    table.tells = tells
    moments = {row_id: row_id + delay for row_id, delay in enumerate(delays, 1)}
    now, end = begins, max(begins, *moments.values()) + 2 * SWEEP_SECONDS
    while now < end:
        table.visible |= {row_id for row_id, moment in moments.items() if moment <= now}
        table.drawn = min(int(now), len(moments))
        table.turn(now, bounded=bounded)
        now += 0.5
    assert sorted(table.got) == sorted(moments)


@given(
    delays=st.lists(st.floats(0, WINDOW_SECONDS), min_size=1, max_size=40),
    tells=st.booleans(),
    begins=st.floats(0, 15),
    room=st.sampled_from([5, 100]),
)
@settings(max_examples=400, deadline=None)
def test_what_commits_within_the_window_is_read_at_the_next_turn(
    delays: list[float], tells: bool, begins: float, room: int
) -> None:
    """A transaction that is open for at most ten seconds never waits for a sweep, whatever has been read meanwhile and
    whenever the reader began; with room for a few only, it waits until the others are read."""
    table = Table(room=room, span=1000)
    table.tells = tells
    moments = {row_id: 0.3 * row_id + delay for row_id, delay in enumerate(delays, 1)}
    now, late = begins, 0
    while now < max(begins, *moments.values()) + 3:
        table.visible |= {row_id for row_id, moment in moments.items() if moment <= now}
        table.drawn = min(int(now / 0.3), len(moments))
        table.turn(now, bounded=False)
        late = late + 1 if set(table.got) != table.visible else 0
        assert late <= (0 if room == 100 else len(delays))
        now += 0.25
    assert set(table.got) == set(moments)


def test_the_window_ends_with_the_transactions_that_were_open() -> None:
    """When all are over who could have drawn an id by then, nobody waits ten seconds."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 100)], 0.0, ["7", "8"])
    positions.seen(positions.forward(lambda _: 5), [(0, 100)], cut=False)
    for now, writers, is_open in ((1.0, ["8", "9"], True), (2.0, ["9", "10"], False)):
        positions.mark([], now, writers)
        assert positions.look_back(1, now).ranges(lambda _: 5, 1000) == [Range(0, 0, 5, 100)]
        positions.look_back(1, now).left.clear()
        positions.looked_back()
        assert positions.open(0) is is_open


def test_what_was_read_while_it_had_writers_is_looked_over() -> None:
    """Between what was past when the reader began and what was past later lies what has to be looked over."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 100)], 0.0, [])
    positions.seen(positions.forward(lambda _: 5), [(0, 300)], cut=True)
    positions.mark([(0, 500)], 1.0, [])
    positions.seen(positions.forward(lambda _: 5), [(0, 400)], cut=True)
    assert positions.look_back(1, 1.0).left == {0: (0, 300)}


def test_where_the_ids_of_a_new_slot_end_is_asked_at_once() -> None:
    """Of a slot that another relay has given up nothing is known; the others are asked about once a second."""
    positions = Positions()
    assert not positions.mark_due(0.0), "there is no slot to ask about"
    positions.own([0])
    assert positions.mark_due(0.0)
    positions.mark([], 0.0, [])
    assert not positions.mark_due(0.5)
    positions.own([1])
    assert positions.mark_due(0.5)
    positions.mark([], 0.5, [])
    assert (positions.mark_due(1.4), positions.mark_due(1.6)) == (False, True)


def test_the_window_of_a_slot_moves_on_without_waiting_for_the_others() -> None:
    """A slot with a million rows to look over keeps those of other slots waiting for nothing."""
    positions = Positions()
    positions.own([0, 1])
    positions.mark([(0, 1000), (1, 1000)], 0.0, ["7"])
    positions.seen(positions.forward(lambda _: 5), [(0, 900), (1, 9)], cut=True)
    positions.mark([], 1.0, [])
    round_ = positions.look_back(1, 1.0)
    round_.seen(round_.ranges(lambda _: 5, 100), [], cut=False)
    positions.looked_at(round_)
    assert (positions.open(0), positions.open(1)) == (True, False)


def test_a_slot_that_nobody_writes_to_needs_no_look_back() -> None:
    """What was there when the reader began, and had no writer, cannot have been overlooked."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 1000)], 0.0, [])
    positions.seen(positions.forward(lambda _: 5), [(0, 300)], cut=True)
    assert not positions.open(0)
    assert not positions.look_back(1, 0.1).left


@pytest.mark.parametrize("tells", [True, False])
def test_a_row_of_a_long_transaction_is_read_when_that_is_over(tells: bool) -> None:
    """Nobody waits for a writer longer than ten seconds; when it ends after thirty, everything is read again at once,
    and not only when a minute is over."""
    table = Table(room=100, span=1000)
    table.tells, table.drawn = tells, 9
    table.visible = {1, 2, 3, 5, 6, 7, 8, 9}
    for second in range(10, 40):
        table.turn(float(second), bounded=False)
    assert not table.positions.open(0)
    table.visible.add(4)
    table.turn(40.0, bounded=False)
    assert table.got[-1] == 4
    assert table.positions.sweep(40.5) is None
    table.turn(41.0, bounded=False)
    assert table.positions.sweep(41.5) is None, "once"


def test_what_was_past_before_it_was_read_is_not_looked_over_again() -> None:
    """Of a backlog only what was read in the first second is, when the transactions of that second are over."""
    positions = Positions()
    positions.own([0])
    positions.mark([(0, 1000)], 0.0, ["7"])
    positions.seen(positions.forward(lambda _: 5), [(0, 300)], cut=True)
    positions.mark([], 1.0, ["9"])
    positions.seen(positions.forward(lambda _: 5), [(0, 800)], cut=True)
    round_ = positions.look_back(1, 1.5)
    assert round_.left == {0: (0, 300)}
    round_.left.clear()
    positions.looked_back()
    positions.seen(positions.forward(lambda _: 5), [(0, 1100)], cut=True)
    assert positions.look_back(2, 1.6).left == {0: (1000, 1100)}
