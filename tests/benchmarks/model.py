"""The words of the suite: goal, row, contender, comparison, and the sample that a run gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row should reach: at least or at most a number of ``unit`` ("x" is a ratio).

    ``classic`` is the goal on a classic queue where that is another one.
    """

    least: float | None = None
    most: float | None = None
    classic: float | None = None
    unit: str = "x"

    def limit(self, queue_type: str) -> float:
        """The number that holds for this type of queue."""
        if queue_type == "classic" and self.classic is not None:
            return self.classic
        limit = self.least if self.least is not None else self.most
        assert limit is not None, "a goal has a least or a most"
        return limit

    def reached(self, value: float, queue_type: str) -> bool:
        """Whether a figure reaches it."""
        limit = self.limit(queue_type)
        return value >= limit if self.least is not None else value <= limit

    def words(self, queue_type: str) -> str:
        """The goal as one says it: at least 5x."""
        return f"{'at least' if self.least is not None else 'at most'} {self.limit(queue_type):g}{self.suffix}"

    @property
    def suffix(self) -> str:
        """The unit as it follows a number."""
        return "x" if self.unit == "x" else f" {self.unit}"


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU microseconds a message took: of the measured process(es), of the broker, of PostgreSQL.

    ``elsewhere``: the share of the whole machine's CPU that others used meanwhile; they disturbed the run.
    """

    client: float
    broker: float
    postgres: float
    elsewhere: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender. ``figures`` is whatever else it measured, under names of its own ("p50_ms")."""

    messages: int
    seconds: float
    cpu: Cpu
    figures: dict[str, float] = field(default_factory=dict)

    def figure(self, name: str) -> float:
        """``rate`` (messages a second), ``cpu`` (of the client, us a message), or one of the ``figures``."""
        if name == "rate":
            return self.messages / self.seconds
        if name == "cpu":
            return self.cpu.client
        return self.figures[name]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Sample:
        return cls(**(given | {"cpu": Cpu(**given["cpu"])}))


@dataclass(frozen=True, slots=True)
class Contender:
    """One who runs. ``run`` makes everything anew, measures one run of so many messages, *checks* it, and returns.

    It raises CheckFailed if the run did not do what it should have. A peer's failure costs its rows only; one of ours
    ends the suite with an error.
    """

    name: str
    run: Callable[[Bench, int], Awaitable[Sample]]
    messages: int
    quick: int
    peer: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a figure of ours over the peer's, or, without a peer, the figure itself."""

    name: str
    goal: Goal
    ours: str
    peer: str | None = None
    figure: str = "rate"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Contenders that run by turns (A B C A B C ...), and the rows that are made from them.

    ``scale``: belongs to ``make bench-scale``.
    """

    name: str
    contenders: tuple[Contender, ...]
    rows: tuple[Row, ...]
    scale: bool = False
    repetitions: int = 3


class CheckFailed(Exception):
    """A run is worthless: something was lost, doubled, left behind, or did not end in time."""
