"""docs/performance.md, written from the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.model import Comparison
from tests.benchmarks.plot import plot
from tests.benchmarks.record import Record, Run
from tests.benchmarks.table import Result, markdown, results

PAGE = "performance.md"
FIGURES = "performance.json"
PICTURE = "performance.png"
TEXT = Path(__file__).with_name("page.md")


def write(directory: Path, record: Record, comparisons: Sequence[Comparison]) -> None:
    """Write the page and its picture."""
    print(picture(_shown(record, comparisons), record.bench[0], directory / PICTURE))
    (directory / PAGE).write_text(text(record, comparisons))


def picture(found: Sequence[Result], run: Run, file: Path) -> str:
    """Draw the rows of a run; what became of it, in one line."""
    title = f"relmsg against its goals · RabbitMQ {run.setup['versions']['RabbitMQ']}, {run.queue_type} queue"
    try:
        plot(found, run.queue_type, title, file)
    except ImportError as error:
        return f"no picture: {error}"
    return f"the picture: {file}"


def text(record: Record, comparisons: Sequence[Comparison]) -> str:
    """The page: the record's newest runs, and what earlier ones came to beside them."""
    run = record.bench[0]
    parts = {"bench": _table(record.bench, comparisons), "scale": "Not recorded yet."}
    if record.scale:
        parts["scale"] = _table(record.scale, comparisons)
    page = TEXT.read_text()
    about = _setup(run.setup) + "\n" + _quiet([*record.bench[:1], *record.scale[:1]])
    for name, value in (parts | {"setup": about, "summary": _summary(_shown(record, comparisons), run)}).items():
        page = page.replace(f"<!-- {name} -->", value)
    return page


def _shown(record: Record, comparisons: Sequence[Comparison]) -> list[Result]:
    return [
        result
        for runs in (record.bench, record.scale)
        for run in runs[:1]
        for result in results(comparisons, run.measured)
    ]


def _table(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    newest, *earlier = runs
    before = [results(comparisons, run.measured) for run in earlier]
    return markdown(results(comparisons, newest.measured), newest.queue_type, before)


def _summary(shown: Sequence[Result], run: Run) -> str:
    reached = [r for r in shown if r.value is not None and r.row.goal.reached(r.value, run.queue_type)]
    return f"{len(reached)} of {len(shown)} goals are reached."


def _quiet(runs: Sequence[Run]) -> str:
    """How far the runs can be trusted."""
    shares = [
        sample.cpu.elsewhere
        for run in runs
        for measured in run.measured.values()
        for samples in measured.samples.values()
        for sample in samples
    ]
    if not shares:
        return ""
    return (
        f"- Programs that were not part of a run used {median(shares):.0%} of the machine's CPU meanwhile (median of "
        f"{len(shares)} runs; {max(shares):.0%} at worst)."
    )


def _setup(setup: dict[str, Any]) -> str:
    services = ", ".join(f"{name} {version}" for name, version in setup["versions"].items())
    settings = ", ".join(f"`{name} = {value}`" for name, value in setup["postgres_settings"].items())
    packages = ", ".join(f"{name} {version}" for name, version in setup["packages"].items())
    lines = [
        (
            f"- Taken {setup['date']} on {setup['processor']}, {setup['cores']} cores, {setup['memory_gb']} GB, "
            f"{setup['system']}. Contender, broker and database share these cores."
        ),
        (
            f"- {services}; {setup['queue_type']} queues, single node. PostgreSQL: {settings}, otherwise as "
            "`compose/local.py` starts it: `fsync`, `synchronous_commit` and `full_page_writes` are on (the suite "
            "refuses to run without). RabbitMQ: defaults."
        ),
        f"- Python {setup['python']}; {packages}.",
    ]
    return "\n".join(lines)
