"""The table: each row's ratio, both figures with their range, CPU a message, and whether the goal is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.measure import Measured
from tests.benchmarks.model import Comparison, Row, Sample

COLUMNS = (
    "row",
    "goal",
    "measured",
    "reached",
    "ours",
    "the other",
    "CPU us/msg ours: client / broker / PG",
    "the other",
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to. ``value`` is None where a contender has failed: ``why`` says so."""

    row: Row
    ours: Sequence[Sample]
    theirs: Sequence[Sample]
    why: str = ""

    @property
    def value(self) -> float | None:
        """Our median over the peer's, or our median where there is no peer."""
        if self.why:
            return None
        ours = self._median(self.ours)
        return ours / self._median(self.theirs) if self.row.peer else ours

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most of the single turns."""
        values = [sample.figure(self.row.figure) for sample in self.ours]
        if self.row.peer:
            others = (sample.figure(self.row.figure) for sample in self.theirs)
            values = [mine / other for mine, other in zip(values, others, strict=False)]
        return min(values), max(values)

    def _median(self, samples: Sequence[Sample]) -> float:
        return median(sample.figure(self.row.figure) for sample in samples)


def results(comparisons: Sequence[Comparison], measured: Mapping[str, Measured]) -> list[Result]:
    """One for each row of what was measured; a row that is younger than the run has none."""
    found = []
    for comparison in comparisons:
        if (of := measured.get(comparison.name)) is None:
            continue
        for row in comparison.rows:
            if not {row.ours, row.peer or row.ours} <= of.samples.keys() | of.failures.keys():
                continue
            failed = [f"{name}: {of.failures[name]}" for name in (row.ours, row.peer) if name in of.failures]
            why = " ".join("; ".join(failed).split()).replace("|", "/")
            found.append(Result(row, of.samples.get(row.ours, []), of.samples.get(row.peer or "", []), why))
    return found


def markdown(found: Sequence[Result], queue_type: str, earlier: Sequence[Sequence[Result]] = ()) -> str:
    """The whole table. What earlier runs came to has columns of its own."""
    columns = [*COLUMNS[:3], *(["the run before"] * len(earlier)), *COLUMNS[3:]]
    lines = [columns, ["---"] * len(columns)]
    for result in found:
        before = [next((each.value for each in run if each.row == result.row), None) for run in earlier]
        goal = result.row.goal
        again = ["" if value is None else f"{number(value)}{goal.suffix}" for value in before]
        cells = _cells(result, queue_type)
        lines.append([result.row.name, goal.words(queue_type), cells[0], *again, *cells[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(result: Result, queue_type: str) -> list[str]:
    """The columns from "measured" on."""
    row = result.row
    if result.value is None:
        return [f"not measured: {_short(result.why)}", "", "", "", "", ""]
    least, most = result.spread
    reached = "yes" if row.goal.reached(result.value, queue_type) else "**no**"
    measured = f"**{number(result.value)}{row.goal.suffix}** ({number(least)}-{number(most)})"
    others = [_figure(result.theirs, row), _cpu(result.theirs)] if row.peer else ["", ""]
    return [measured, reached, _figure(result.ours, row), others[0], _cpu(result.ours), others[1]]


def _figure(samples: Sequence[Sample], row: Row) -> str:
    """Where the row is about a rate or CPU, the rate; otherwise the figure it is about."""
    name = "rate" if row.figure == "cpu" else row.figure
    values = [sample.figure(name) for sample in samples]
    unit = "/s" if name == "rate" else ""
    return f"{number(median(values))}{unit} ({number(min(values))}-{number(max(values))})"


def _cpu(samples: Sequence[Sample]) -> str:
    parts = ([getattr(sample.cpu, part) for sample in samples] for part in ("client", "broker", "postgres"))
    return " / ".join(number(median(values)) for values in parts)


def number(value: float) -> str:
    """With as many digits as mean something."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:159] + "…"
