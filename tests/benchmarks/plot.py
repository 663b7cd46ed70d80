"""The rows as one picture: how many times its goal each reaches, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.table import Result, number

REACHED, MISSED = "#2a7f8e", "#c8553d"
INK, FAINT = "#22303c", "#8a97a3"
ROOM = 1.6  # beyond the longest bar, for its label


def plot(found: Sequence[Result], queue_type: str, title: str, file: Path) -> None:
    """Draw the rows that have a value, in the order of the table. :raises ImportError: without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown = [result for result in found if result.value]
    times = [_times(result, queue_type) for result in shown]
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.42 * len(shown)), layout="constrained")
    positions = range(len(shown) - 1, -1, -1)
    for position, result, reach in zip(positions, shown, times, strict=True):
        colour = REACHED if result.row.goal.reached(result.value or 0.0, queue_type) else MISSED
        axes.barh(position, reach - 1, left=1, height=0.62, color=colour)
        axes.annotate(
            f"{number(result.value or 0.0)}{result.row.goal.suffix}",
            (reach, position), xytext=(6 if reach >= 1 else -6, 0), textcoords="offset points",
            va="center", ha="left" if reach >= 1 else "right", color=colour, fontsize=10, fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(list(positions), [plain(result.row.name) for result in shown], fontsize=10, color=INK)
    for position, result in zip(positions, shown, strict=True):
        axes.annotate(
            result.row.goal.words(queue_type), (1, position), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", ha="left", color=FAINT, fontsize=9,
        )  # fmt: skip
    axes.annotate(
        "goal", (1, len(shown) - 0.35), xycoords=("axes fraction", "data"), xytext=(8, 0),
        textcoords="offset points", va="bottom", ha="left", color=FAINT, fontsize=9, fontweight="bold",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(min([0.5, *(reach / ROOM for reach in times)]), max([2.0, *(reach * ROOM for reach in times)]))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="both", length=0, labelsize=9, labelcolor=FAINT)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", which="major", color="#e3e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("times the goal (logarithmic); right of the line: reached", color=FAINT, fontsize=9)
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=14)
    figure.get_layout_engine().set(h_pad=0.12)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def plain(text: str) -> str:
    """Without Markdown's marks."""
    return text.replace("`", "")


def _times(result: Result, queue_type: str) -> float:
    """The goal's multiple; for "at most" the other way round, so that more is always better."""
    assert result.value is not None
    goal = result.row.goal
    limit = goal.limit(queue_type)
    return result.value / limit if goal.least is not None else limit / result.value
