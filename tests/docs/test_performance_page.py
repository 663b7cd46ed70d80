"""docs/performance.md says what was measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import page
from tests.benchmarks.record import Record
from tests.benchmarks.rows import COMPARISONS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_the_one_that_its_record_gives() -> None:
    """Nobody has edited a figure by hand, and no row was renamed since: otherwise `make bench ARGS=--page`."""
    assert (DOCS / page.PAGE).read_text() == page.text(Record.read(DOCS / page.FIGURES), COMPARISONS)


def test_every_recorded_run_was_a_whole_one_on_durable_services() -> None:
    """No quick run is published: its figures mean nothing."""
    record = Record.read(DOCS / page.FIGURES)
    assert record.bench
    assert not any(run.setup["quick"] for run in [*record.bench, *record.scale])
