"""The relay's rows in memory, held against a model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relmsg.broker.wire import Publication
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


class PendingMachine(RuleBasedStateMachine):
    """Rows come, are sent, settled, held and forgotten in any order; the table below is the truth."""

    @initialize()
    def start(self) -> None:
        self.pending = Pending()
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

    @rule()
    def read_all(self) -> None:
        """As the store reads: in id order, without what is in memory, and without what is behind a held row."""
        known = set(self.pending.ids)
        blocked = {held.ordering_key for held in self.held.values() if held.ordering_key}
        for row_id in sorted(self.table):
            if row_id not in known and self.table[row_id].ordering_key not in blocked:
                self.pending.admit(self.table[row_id])

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
            del self.table[each.id]
            if each.ordering_key:
                self.sent.setdefault(each.ordering_key, []).append(each.id)
            self.pending.done(each)
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
        assert set(self.pending.ids) <= set(self.table)

    def teardown(self) -> None:
        """Whatever happened: once all is answered and read again, every row can still be sent."""
        for each in (*self.out.values(), *self.held.values()):
            self.pending.put_out(each)
            self.pending.done(each)
            self.table.pop(each.id)
        for _ in range(len(self.table) * 2 + 2):
            for row_id in sorted(self.table):
                self.pending.admit(self.table[row_id])
            for each in self.pending.take(100, unless=lambda _: False):
                self.pending.done(each)
                del self.table[each.id]
        assert not self.table
        assert len(self.pending) == 0
        assert all(self.pending.in_slot(slot) == 0 for slot in range(3))


PendingMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPending = PendingMachine.TestCase
