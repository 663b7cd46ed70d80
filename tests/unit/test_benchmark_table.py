"""What the benchmark suite makes of its samples."""

from __future__ import annotations

import pytest

from tests.benchmarks.measure import Measured
from tests.benchmarks.model import Comparison, Contender, Cpu, Goal, Row, Sample
from tests.benchmarks.record import Record, Run
from tests.benchmarks.table import markdown, results


async def _never(*_: object) -> Sample:
    raise AssertionError


def sample(rate: float, *, cpu: float = 10.0, **figures: float) -> Sample:
    return Sample(1000, 1000 / rate, Cpu(cpu, 40.0, 5.0), figures)


def comparison(*rows: Row) -> Comparison:
    return Comparison("relay", (Contender("ours", _never, 1, 1), Contender("peer", _never, 1, 1, peer=True)), rows)


AGAINST = Row("against the peer", Goal(5, classic=2), "ours", "peer")
MEASURED = {
    "relay": Measured({"ours": [sample(r) for r in (600, 1000, 500)], "peer": [sample(r) for r in (100, 125, 200)]})
}


def test_a_ratio_is_that_of_the_medians_and_its_range_that_of_the_turns() -> None:
    """600 over 125, between 500 / 200 and 1000 / 125."""
    (result,) = results([comparison(AGAINST)], MEASURED)
    assert result.value == pytest.approx(4.8)
    assert result.spread == pytest.approx((2.5, 8.0))


def test_a_goal_may_be_another_one_on_classic_queues() -> None:
    """4.8x misses "at least 5x" and reaches "at least 2x"."""
    found = results([comparison(AGAINST)], MEASURED)
    assert "| at least 5x | **4.80x** (2.50-8.00) | **no** | 600/s" in markdown(found, "quorum")
    assert "| at least 2x | **4.80x** (2.50-8.00) | yes | 600/s" in markdown(found, "classic")


def test_a_row_without_a_peer_is_about_the_figure_itself() -> None:
    """CPU of at most 20 us is reached by 10 us, a poll of at most 1 ms is missed by 3 ms."""
    rows = (
        Row("cpu", Goal(most=20, unit="us"), "ours", figure="cpu"),
        Row("poll", Goal(most=1, unit="ms"), "ours", figure="poll_ms"),
    )
    table = markdown(results([comparison(*rows)], {"relay": Measured({"ours": [sample(100, poll_ms=3.0)]})}), "quorum")
    assert "| cpu | at most 20 us | **10.0 us** (10.0-10.0) | yes | 100/s" in table
    assert "| poll | at most 1 ms | **3.00 ms** (3.00-3.00) | **no** | 3.00 (3.00-3.00)" in table


def test_a_row_that_is_younger_than_a_run_has_no_figure_of_it() -> None:
    """Beside a run that has it the column stays empty; the other rows keep theirs."""
    young = Row("younger", Goal(1), "new", "peer")
    now = {"relay": Measured({**MEASURED["relay"].samples, "new": [sample(250)]})}
    rows = [comparison(AGAINST, young)]
    lines = markdown(results(rows, now), "quorum", [results(rows, MEASURED)]).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:]] == ["4.80x", ""]


def test_a_peer_that_failed_costs_its_rows_and_says_why_in_one_line() -> None:
    """The row is there, without figures, and its table stays a table."""
    failed = {"relay": Measured({"ours": [sample(100)]}, {"peer": "CheckFailed: ended\nNo module | named peer"})}
    lines = markdown(results([comparison(AGAINST)], failed), "quorum").splitlines()
    assert lines[2].startswith("| against the peer | at least 5x | not measured: peer: CheckFailed: ended No module /")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_a_recorded_run_reads_back_as_it_was_written(tmp_path) -> None:
    """Samples, figures and failures survive the file."""
    run = Run({"queue_type": "quorum"}, {"relay": Measured({"ours": [sample(3, p50=2.0)]}, {"peer": "no"})})
    record = Record([run], [])
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == record


def test_a_part_of_a_run_is_only_recorded_into_one_of_the_same_machine() -> None:
    """The date may differ, the processor may not."""
    record = Record([Run({"processor": "a", "date": "1"}, {"relay": Measured()})], [])
    record.add(Run({"processor": "a", "date": "2"}, {"keys": Measured()}), scale=False, partial=True, again=False)
    assert set(record.bench[0].measured) == {"relay", "keys"}
    with pytest.raises(ValueError, match="another machine"):
        record.add(Run({"processor": "b", "date": "2"}, {}), scale=False, partial=True, again=False)


def test_a_second_run_stands_beside_the_first() -> None:
    """Its ratios have a column of their own."""
    found = results([comparison(AGAINST)], MEASURED)
    earlier = results([comparison(AGAINST)], {"relay": Measured({"ours": [sample(700)], "peer": [sample(100)]})})
    table = markdown(found, "quorum", [earlier])
    assert "| row | goal | measured | the run before | reached |" in table
    assert "(2.50-8.00) | 7.00x | **no** |" in table
