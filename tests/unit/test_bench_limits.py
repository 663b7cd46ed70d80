"""What `relmsg bench` says a measurement was limited by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relmsg.bench.limits import Limit, Trips, Work, latency_verdict, verdict
from relmsg.bench.measure import quantile
from relmsg.bench.run import Part, Plan

TRIPS = Trips(select=0.0002, commit=0.0022, confirm=0.001)
IDLE = Work(count=1000, seconds=10.0, cpu_seconds=1.0)


def test_the_flush_is_what_a_commit_takes_beyond_its_round_trip():
    """A commit that is as quick as any answer has not waited for a disk."""
    assert TRIPS.flush == pytest.approx(0.002)
    assert replace(TRIPS, commit=0.0001).flush == 0


def test_a_process_that_uses_nearly_a_core_is_the_limit_whatever_else_it_waits_for():
    """CPU comes first: time that was spent computing was not spent waiting."""
    busy = replace(IDLE, cpu_seconds=8.5, trips=4, commits=5, confirmed=True)
    assert verdict(busy, TRIPS).limit is Limit.PROCESS
    assert verdict(replace(busy, cpu_seconds=8.4), TRIPS).limit is not Limit.PROCESS


def test_commits_that_explain_the_time_make_the_disk_the_limit():
    """1,000 commits with 2 ms of flush are 2 s: of 3 s that is the limit, of 10 s it is not."""
    work = replace(IDLE, seconds=3.0, cpu_seconds=0.5, trips=3, commits=1)
    found = verdict(work, TRIPS)
    assert found.limit is Limit.FLUSH
    assert "2.00 ms" in found.sentence
    assert "67 %" in found.sentence
    assert verdict(replace(work, seconds=10.0), TRIPS).limit is Limit.NOT_CLEAR


def test_several_at_a_time_wait_for_the_disk_side_by_side():
    """What eight wait for at the same time passes once."""
    work = replace(IDLE, seconds=3.0, cpu_seconds=0.5, trips=3, commits=1)
    assert verdict(replace(work, lanes=8), TRIPS).limit is Limit.NOT_CLEAR


def test_round_trips_that_explain_the_time_are_the_limit():
    """On a far database the answers take the time, not the disk."""
    far = Trips(select=0.02, commit=0.021, confirm=0.001)
    work = Work(count=100, seconds=9.0, cpu_seconds=0.2, trips=4, commits=1)
    found = verdict(work, far)
    assert found.limit is Limit.ROUND_TRIP
    assert "89 %" in found.sentence


def test_who_waits_for_nobody_but_the_broker_is_limited_by_the_broker():
    """A publisher without a database has nobody else to wait for."""
    found = verdict(replace(IDLE, confirmed=True), TRIPS)
    assert found.limit is Limit.BROKER
    assert "90 %" in found.sentence


def test_a_relay_as_fast_as_a_publisher_alone_is_limited_by_the_broker():
    """What the broker takes from a publisher alone is the most it takes from a relay; below that it is not the limit,
    and where the publisher was not measured, or was not held back by the broker, nobody knows."""
    relay = replace(IDLE, trips=0.004, commits=0.002, confirmed=True)
    assert relay.rate == 100
    assert verdict(relay, TRIPS, ceiling=110).limit is Limit.BROKER
    assert verdict(relay, TRIPS, ceiling=300).limit is Limit.NOT_CLEAR
    assert verdict(relay, TRIPS, ceiling=None).limit is Limit.NOT_CLEAR


def test_what_nothing_explains_is_not_clear_and_says_what_each_accounts_for():
    """Unknown is a case of its own: it is told with the figures that were not enough."""
    found = verdict(replace(IDLE, trips=3, commits=1), TRIPS)
    assert found.limit is Limit.NOT_CLEAR
    assert "CPU accounts for 10 %" in found.sentence
    assert "flushes for 20 %" in found.sentence
    assert "PostgreSQL for 6 %" in found.sentence


@pytest.mark.parametrize(
    ("median", "polls", "limit"),
    [
        (0.0018, None, Limit.BROKER),
        (0.0018, (0.005, 0.25), Limit.BROKER),
        (0.02, (0.005, 0.25), Limit.POLLING),
        (0.02, None, Limit.NOT_CLEAR),
        (0.9, (0.005, 0.25), Limit.NOT_CLEAR),
        (0.003, (0.005, 0.25), Limit.NOT_CLEAR),
    ],
)
def test_latency_is_explained_by_the_confirm_or_by_polling_or_not(median, polls, limit):
    """Polling explains a time that its pauses can make, and none where a hint wakes the relay."""
    assert latency_verdict(median, TRIPS, polls).limit is limit


def test_latency_of_a_far_database_is_its_round_trips():
    """Reading the row and remembering it are two answers of the database."""
    assert latency_verdict(0.05, replace(TRIPS, select=0.02), None).limit is Limit.ROUND_TRIP


def test_quantiles_are_values_that_occurred():
    """The largest is never exceeded, also of one value."""
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([float(each) for each in range(100)], 0.99) == 99.0


def test_the_plan_says_how_many_messages_go_out():
    """One part alone sends what this part needs; the round trips are always measured."""
    plan = Plan(20_000, (Part.RELAY,))
    assert plan.total == 20_000 + plan.samples
    assert Plan(20_000).total == plan.samples + 20_000 + 26_000 + 20_000 + 45_000 + 2 * 400
    assert all(count >= 1 for count in (Plan(10).single, Plan(10).alone, Plan(10).paced, Plan(10).samples))
