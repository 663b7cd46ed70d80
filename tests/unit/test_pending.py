"""The relay's rows in memory, held against a model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relmsg.broker.wire import Publication
from relmsg.outbox.hot import HOT_PER_SLOT, HotKey
from relmsg.outbox.pending import Pending
from relmsg.outbox.row import Destination, Row

KEYS = [None, "a", "b", "c"]
PLACES = [Destination("x", "1"), Destination("x", "2")]


def row(row_id: int, key: str | None = None, slot: int = 0, place: Destination = PLACES[0]) -> Row:
    return Row(row_id, slot, key, place, Publication(str(row_id), *place, None, b""))  # type: ignore[arg-type]


def test_one_row_of_a_key_is_out_at_a_time() -> None:
    """The second row of a key may go only when the first is done."""
    pending = Pending()
    first, second, other = row(1, "k"), row(2, "k"), row(3, "l")
    for each in (first, second, other):
        pending.admit(each)
    assert pending.take(10, unless=lambda _: False) == [first, other]
    pending.done(first)
    assert pending.take(10, unless=lambda _: False) == [second]


def test_a_row_to_be_sent_again_goes_before_what_came_after_it() -> None:
    """An unanswered row keeps its place, and its lane waits behind it."""
    pending = Pending()
    first, second, other = row(1, "k"), row(2, "k"), row(3)
    for each in (first, second, other):
        pending.admit(each)
    assert pending.take(1, unless=lambda _: False) == [first]
    pending.again(first)
    assert pending.take(10, unless=lambda _: False) == [first, other]


def test_a_late_small_id_stands_before_the_larger_ones_of_its_lane() -> None:
    """A row that became visible late joins its lane in id order, behind the one that is out."""
    pending = Pending()
    out, late, last = row(5, "k"), row(6, "k"), row(9, "k")
    for each in (out, last, late):
        pending.admit(each)
    assert pending.take(9, unless=lambda _: False) == [out]
    pending.done(out)
    assert pending.take(9, unless=lambda _: False) == [late]


def test_the_next_of_a_key_goes_at_the_confirm_and_not_at_the_delete() -> None:
    """A confirmed row frees its lane at once, and its id stays known until its delete is done."""
    pending = Pending()
    first, second = row(1, "k"), row(2, "k")
    pending.admit(first)
    pending.admit(second)
    assert pending.take(9, unless=lambda _: False) == [first]
    pending.confirm(first)
    assert pending.take(9, unless=lambda _: False) == [second]
    pending.admit(row(1, "k"))
    assert sorted(pending.known_above({0: 0})) == [1, 2]
    assert (pending.confirmed, pending.unsettled_of_slot(0), len(pending)) == (1, 2, 1)
    pending.deleted([1])
    assert pending.known_above({0: 0}) == [2]
    assert pending.unsettled_of_slot(0) == 1


def test_an_unproven_row_waits_and_an_overlooked_one_goes_before_it() -> None:
    """While a smaller id of its key may have become visible behind the reader's back, a row does not leave."""
    pending = Pending()
    late, doubtful, free = row(5, "k"), row(9, "k"), row(7)
    pending.admit(doubtful, read=1, proven=False)
    pending.admit(free, read=1, proven=False)
    assert pending.take(9, unless=lambda _: False) == [free]
    assert pending.doubtful() == [("k", 0, 9)]
    pending.admit(late, read=2, proven=False)
    pending.prove(1)
    assert pending.take(9, unless=lambda _: False) == []
    pending.prove(2)
    assert pending.take(9, unless=lambda _: False) == [late]
    pending.confirm(late)
    assert pending.take(9, unless=lambda _: False) == [doubtful]


def test_a_hot_key_is_read_on_for_itself_as_its_lane_drains() -> None:
    """Beyond its lane a key takes no memory; what follows its tail comes by refill, until nothing more follows."""
    pending = Pending()
    pending.lane_room = 4
    rows = [row(number, "hot") for number in range(1, 11)]
    for each in (*rows, row(11, "other")):
        pending.admit(each)
    assert (len(pending), list(pending.hot)) == (5, [HotKey("hot", 0, 4)])
    assert pending.refill() == []
    sent: list[int] = []
    while pending.ready:
        for each in pending.take(1, unless=lambda _: False):
            sent.append(each.id)
            pending.confirm(each)
        for hot, room in pending.refill():
            following = [each for each in rows if each.id > hot.tail][:room]
            reached = max((each.id for each in following), default=hot.tail)
            pending.refilled(hot, following, reached=reached, exhausted=len(following) < room)
            assert pending.in_slot(0) <= 5
    assert [number for number in sent if number != 11] == list(range(1, 11))
    assert not list(pending.hot)


def test_a_late_row_of_a_hot_key_is_taken() -> None:
    """A hot key refuses what follows its tail, and nothing before it."""
    pending = Pending()
    pending.lane_room = 2
    for number in (10, 20, 30):
        pending.admit(row(number, "hot"))
    pending.admit(row(5, "hot"))
    pending.admit(row(40, "hot"))
    assert sorted(pending.known_above({0: 0})) == [5, 10, 20]


def test_so_many_hot_keys_crowd_a_slot() -> None:
    """The list of hot keys goes into every read, so a slot has an end of them; forgetting a key makes room."""
    pending = Pending()
    pending.lane_room = 1
    for number in range(HOT_PER_SLOT):
        assert not pending.crowded(0)
        pending.admit(row(2 * number + 1, f"key {number}"))
        pending.admit(row(2 * number + 2, f"key {number}"))
    assert pending.crowded(0)
    assert not pending.crowded(1)
    (first,) = pending.take(1, unless=lambda _: False)
    pending.forget(first)
    assert not pending.crowded(0)


class PendingMachine(RuleBasedStateMachine):
    """Rows come, are sent, settled, held and forgotten in any order; the table below is the truth."""

    @initialize()
    def start(self) -> None:
        self.pending = Pending()
        self.pending.lane_room = 3
        self.reads = 0
        self.undeleted: set[int] = set()
        self.table: dict[int, Row] = {}
        self.out: dict[int, Row] = {}
        self.held: dict[int, Row] = {}
        self.sent: dict[str, list[int]] = {}
        self.next_id = 1

    @rule(key=st.sampled_from(KEYS), slot=st.integers(0, 2), place=st.sampled_from(PLACES))
    def commit(self, key: str | None, slot: int, place: Destination) -> None:
        slot = slot if key is None else KEYS.index(key) % 3
        self.table[self.next_id] = row(self.next_id, key, slot, place)
        self.next_id += 1

    def known(self) -> set[int]:
        return set(self.pending.known_above(dict.fromkeys(range(3), 0)))

    def visible(self) -> list[Row]:
        """As the store reads: in id order, without what is in memory, and without what is behind a held row."""
        known = self.known()
        blocked = {held.ordering_key for held in self.held.values() if held.ordering_key}
        return [
            self.table[row_id]
            for row_id in sorted(self.table)
            if row_id not in known and self.table[row_id].ordering_key not in blocked
        ]

    @rule(proven=st.booleans())
    def read_all(self, proven: bool) -> None:
        tails = {hot.key: hot.tail for hot in self.pending.hot}
        self.reads += 1
        for each in self.visible():
            if each.id <= tails.get(each.ordering_key or "", each.id):
                self.pending.admit(each, read=self.reads, proven=proven)

    @rule()
    def prove(self) -> None:
        self.pending.prove(self.reads)

    @rule()
    def refill(self) -> None:
        for hot, room in self.pending.refill():
            rows = [each for each in self.visible() if each.ordering_key == hot.key and each.id > hot.tail][:room]
            reached = max((each.id for each in rows), default=hot.tail)
            self.pending.refilled(hot, rows, reached=reached, exhausted=len(rows) < room)

    @precondition(lambda self: self.undeleted)
    @rule()
    def delete(self) -> None:
        self.pending.deleted(self.undeleted)
        for row_id in self.undeleted:
            del self.table[row_id]
        self.undeleted.clear()

    @precondition(lambda self: not self.held)
    @rule()
    def rewind(self) -> None:
        self.pending.forget_unproven()

    @rule(most=st.integers(1, 4))
    def send(self, most: int) -> None:
        for each in self.pending.take(most, unless=lambda _: False):
            assert each.id not in self.out, "sent twice without an answer"
            self.out[each.id] = each

    @precondition(lambda self: self.out)
    @rule(data=st.data(), answer=st.sampled_from(["done", "again", "hold", "forget"]))
    def settle(self, data: st.DataObject, answer: str) -> None:
        each = self.out.pop(data.draw(st.sampled_from(sorted(self.out))))
        if answer == "done":
            self.undeleted.add(each.id)
            if each.ordering_key:
                self.sent.setdefault(each.ordering_key, []).append(each.id)
            self.pending.confirm(each)
        elif answer == "again":
            self.pending.again(each)
        elif answer == "hold":
            self.held[each.id] = each
            self.pending.keep_only(each)
        else:
            self.pending.forget(each)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        each = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.pending.put_out(each)
        self.out[each.id] = each

    @precondition(lambda self: not self.held)
    @rule(slot=st.integers(0, 2))
    def lose_a_slot(self, slot: int) -> None:
        self.pending.forget_slots([slot])

    @invariant()
    def one_out_per_key(self) -> None:
        keys = [each.ordering_key for each in (*self.out.values(), *self.held.values()) if each.ordering_key]
        assert len(keys) == len(set(keys))

    @invariant()
    def a_key_is_sent_in_order(self) -> None:
        for ids in self.sent.values():
            assert ids == sorted(ids)

    @invariant()
    def nothing_is_known_that_is_not_in_the_table(self) -> None:
        assert self.known() <= set(self.table)
        assert self.pending.bytes == 0

    @invariant()
    def lanes_are_bounded(self) -> None:
        for key in filter(None, KEYS):
            lane = self.pending._lanes.get(key, ())
            assert len(lane) <= self.pending.lane_room
            assert [each.id for each in lane] == sorted(each.id for each in lane)

    def teardown(self) -> None:
        """Whatever happened: once all is answered and read again, every row can still be sent."""
        for each in (*self.out.values(), *self.held.values()):
            self.pending.put_out(each)
            self.pending.done(each)
            self.table.pop(each.id)
        self.delete()
        self.held.clear()
        for _ in range(len(self.table) * 2 + 2):
            self.read_all(proven=True)
            self.refill()
            self.prove()
            for each in self.pending.take(100, unless=lambda _: False):
                self.pending.done(each)
                del self.table[each.id]
        assert not self.table
        assert len(self.pending) == 0
        assert all(self.pending.in_slot(slot) == 0 for slot in range(3))


PendingMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPending = PendingMachine.TestCase
