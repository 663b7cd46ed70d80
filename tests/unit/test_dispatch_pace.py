"""How large groups become: by the handler's time, and by their luck."""

from __future__ import annotations

from relmsg.inbox.call import Took
from relmsg.inbox.pace import BUDGET_SECONDS, FIRST_PENALTY, WORTH_IT, Pace

OURS = 0.002


def after(pace: Pace, units: int, each: float | None, ours: float = OURS) -> int:
    """The size after so many full units, whose handler took so many seconds for each message."""
    for _ in range(units):
        pace.went_well(pace.size, None if each is None else Took(each * pace.size, ours))
    return pace.size


def test_a_quick_handler_gets_full_groups_soon() -> None:
    """The first message is handled alone; then the size doubles up to what the handler allows."""
    pace = Pace(50)
    sizes = [pace.size] + [after(pace, 1, 0.0001) for _ in range(7)]
    assert sizes == [1, 2, 4, 8, 16, 32, 50, 50]


def test_a_handler_that_takes_long_is_not_grouped() -> None:
    """Where a group would save little, messages run singly; a handler of lists is asked for nothing of the kind."""
    assert after(Pace(50), 20, OURS * WORTH_IT * 0.9) == int(BUDGET_SECONDS / (OURS * WORTH_IT * 0.9))
    assert after(Pace(50), 20, OURS * WORTH_IT * 1.1) == 1
    assert after(Pace(200, timed=False), 20, 2.0) == 200


def test_a_busy_machine_does_not_end_groups() -> None:
    """If the handler and our own statements take ten times longer, groups stay; only their whole time is bounded."""
    assert after(Pace(50), 20, 0.01, ours=OURS * 10) == int(BUDGET_SECONDS / 0.01)


def test_a_handler_that_becomes_slow_is_no_longer_grouped() -> None:
    """One slow group is enough; when it is quick again, groups come back."""
    pace = Pace(50)
    after(pace, 20, 0.0001)
    pace.went_well(pace.size, Took(30.0, OURS))
    assert pace.size == 1
    assert after(pace, 60, 0.0001) == 50


def test_a_group_without_new_messages_says_nothing_of_the_handlers_time() -> None:
    """Where all are duplicates, groups grow."""
    assert after(Pace(50), 10, None) == 50


def test_bad_luck_cuts_the_size_and_it_comes_back_slowly() -> None:
    """After a failure a quarter, and no growth before so many messages have gone well; each failure doubles that."""
    pace = Pace(48)
    after(pace, 20, 0.0001)
    pace.failed(48)
    assert pace.size == 12
    handled = 0
    while pace.size == 12:
        pace.went_well(12, Took(0.001, OURS))
        handled += 12
    assert handled >= FIRST_PENALTY
    for _ in range(20):
        pace.failed(pace.size)
    assert pace.size == 1
    assert after(pace, 1000, 0.0001) == 1


def test_groups_that_always_fail_cost_next_to_nothing() -> None:
    """If every group fails, less than one message in a hundred is handled in vain."""
    pace, alone, in_vain = Pace(50), 0, 0
    for _ in range(20_000):
        if pace.size == 1:
            pace.went_well(1, Took(0.0001, OURS))
            alone += 1
        else:
            in_vain += pace.size
            pace.failed(pace.size)
    assert in_vain < alone / 100
