"""What is kept of runs, so that the page can be written again without measuring again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.measure import Measured

# Two runs may differ in these and still be put side by side.
MAY_DIFFER = ("date", "commit")


@dataclass(frozen=True, slots=True)
class Run:
    """On what it was taken, and what was measured, by comparison."""

    setup: dict[str, Any]
    measured: Mapping[str, Measured]

    @property
    def queue_type(self) -> str:
        return str(self.setup["queue_type"])

    def like(self, other: Run) -> bool:
        """Whether both were taken on the same machine, services and libraries."""
        return all(self.setup[name] == other.setup.get(name) for name in self.setup if name not in MAY_DIFFER)

    def as_json(self) -> dict[str, Any]:
        return {"setup": self.setup, "comparisons": {name: each.as_json() for name, each in self.measured.items()}}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        measured = {name: Measured.from_json(each) for name, each in given["comparisons"].items()}
        return cls(given["setup"], measured)


@dataclass(slots=True)
class Record:
    """The runs that the page shows: the newest first, of `make bench` and of `make bench-scale`."""

    bench: list[Run]
    scale: list[Run]

    @classmethod
    def read(cls, file: Path) -> Self:
        """That of the file; an empty one if there is none."""
        if not file.exists():
            return cls([], [])
        given = json.loads(file.read_text())
        return cls(*([Run.from_json(run) for run in given[part]] for part in ("bench", "scale")))

    def add(self, run: Run, *, scale: bool, partial: bool, again: bool) -> None:
        """Put a run in the place of the former ones; ``again``: beside them; ``partial``: its comparisons into the
        newest one.

        :raises ValueError: if it is to stand with one that was taken on something else.
        """
        runs = self.scale if scale else self.bench
        if runs and (partial or again) and not runs[0].like(run):
            raise ValueError("the recorded run was taken on another machine, service or library: record a whole run")
        if partial and runs:
            runs[0] = Run(runs[0].setup, {**runs[0].measured, **run.measured})
        elif again:
            runs.insert(0, run)
        else:
            runs[:] = [run]

    def write(self, file: Path) -> None:
        kept = {"bench": [run.as_json() for run in self.bench], "scale": [run.as_json() for run in self.scale]}
        file.write_text(json.dumps(kept, indent=1) + "\n")
