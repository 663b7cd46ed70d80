"""docs/performance.md says what was measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import page
from tests.benchmarks.record import Record
from tests.benchmarks.rows import COMPARISONS
from tests.benchmarks.table import results

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_the_one_that_its_record_gives() -> None:
    """Nobody has edited a figure by hand, and no row was renamed since: otherwise `make bench ARGS=--page`."""
    assert (DOCS / page.PAGE).read_text() == page.text(Record.read(DOCS / page.FIGURES), COMPARISONS)


def test_every_recorded_run_was_a_whole_one_on_durable_services() -> None:
    """No quick run is published: its figures mean nothing."""
    record = Record.read(DOCS / page.FIGURES)
    assert record.bench
    assert not any(run.setup["quick"] for run in [*record.bench, *record.scale])


def test_every_row_of_the_suite_has_a_figure() -> None:
    """The newest runs have measured all that the suite has today."""
    record = Record.read(DOCS / page.FIGURES)
    shown = {result.row for run in (record.bench[0], record.scale[0]) for result in results(COMPARISONS, run.measured)}
    assert shown == {row for comparison in COMPARISONS for row in comparison.rows}


def test_every_goal_that_is_not_reached_is_explained() -> None:
    """The page names each row that misses its goal where it says why."""
    record = Record.read(DOCS / page.FIGURES)
    text = (DOCS / page.PAGE).read_text()
    explained = " ".join(text.split("## What is not reached")[1].split("\n## ")[0].split())
    missed = [
        result.row.name
        for run in (*record.bench, *record.scale)
        for result in results(COMPARISONS, run.measured)
        if result.value is None or not result.row.goal.reached(result.value, run.queue_type)
    ]
    assert missed
    assert [name for name in missed if name not in explained] == []
