"""What limited a measurement: plain rules over what was counted, without a clock or a service.

Each rule needs evidence. Where none has enough, the answer is "not clear": a wrong one would have somebody buy a disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BUSY = 0.85  # of a core: beyond this the process has no time left to wait for anybody
EXPLAINS = 0.5  # of the time: what explains this much is the limit, for nothing else can be more
NEAR_CEILING = 0.8  # of what the broker takes from a publisher that does nothing else


class Limit(StrEnum):
    """What a row was limited by."""

    PROCESS = "process"
    BROKER = "broker"
    FLUSH = "disk flush"
    ROUND_TRIP = "round trip"
    POLLING = "polling"
    NOT_CLEAR = "not clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """Medians in seconds, each taken one after another: nothing else was going on."""

    select: float
    commit: float
    confirm: float

    @property
    def flush(self) -> float:
        """What a commit takes beyond its round trip: the disk."""
        return max(0.0, self.commit - self.select)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What was done in ``seconds``, and what each unit of it had to wait for, one thing after the other.

    :param lanes: units under way at a time, each with waits of its own.
    :param trips: round trips to PostgreSQL a unit waits for, its commits among them. Shared ones count in part: 3
        for 500 units are 0.006.
    :param commits: of these, the ones that wait for the disk.
    :param confirmed: each unit waits for the broker, but not by itself: many are under way at a time.
    """

    count: int
    seconds: float
    cpu_seconds: float
    lanes: int = 1
    trips: float = 0.0
    commits: float = 0.0
    confirmed: bool = False

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.count / self.seconds

    @property
    def cpu_share(self) -> float:
        """How much of one core this process used."""
        return self.cpu_seconds / self.seconds

    def share(self, waits: float, each: float) -> float:
        """How much of the time so many waits of a unit, of ``each`` seconds, account for."""
        return self.count / self.lanes * waits * each / self.seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """A limit, and the sentence that says why."""

    limit: Limit
    sentence: str


def verdict(work: Work, trips: Trips, ceiling: float | None = None) -> Verdict:
    """What limited this work.

    :param ceiling: messages a second the broker has taken from a publisher that it held back; None: not known.
    """
    if work.cpu_share >= BUSY:
        return Verdict(Limit.PROCESS, f"this process's CPU: it used {_percent(work.cpu_share)} of a core")
    flush, waits = work.share(work.commits, trips.flush), work.share(work.trips, trips.select)
    if flush >= EXPLAINS and flush >= waits:
        return Verdict(
            Limit.FLUSH,
            f"the disk of PostgreSQL: its flush, {_ms(trips.flush)} in each commit, is {_part(flush)} of the time",
        )
    if waits >= EXPLAINS:
        return Verdict(
            Limit.ROUND_TRIP,
            f"the round trip to PostgreSQL: {_ms(trips.select)} each, they are {_part(waits)} of the time",
        )
    if work.confirmed and not work.trips:
        idle = 1 - work.cpu_share
        return Verdict(Limit.BROKER, f"the broker: {_percent(idle)} of the time this process waited for confirms")
    if work.confirmed and ceiling is not None and work.rate >= NEAR_CEILING * ceiling:
        part = _percent(work.rate / ceiling)
        return Verdict(Limit.BROKER, f"the broker: this is {part} of what it takes from a publisher alone")
    return Verdict(
        Limit.NOT_CLEAR,
        f"not clear: this process's CPU accounts for {_percent(work.cpu_share)} of the time, disk flushes for "
        f"{_percent(flush)}, round trips to PostgreSQL for {_percent(waits)}; the rest is the services' own work, or "
        "others on these machines",
    )


def latency_verdict(median: float, trips: Trips, polls: tuple[float, float] | None) -> Verdict:
    """What the time from commit to handler consists of mostly. On its way a message is read from the outbox, confirmed
    and delivered, and remembered in the inbox.

    :param polls: the shortest and the longest pause between two looks into the outbox; None where a hint wakes the
        relay.
    """
    if trips.confirm >= EXPLAINS * median:
        return Verdict(Limit.BROKER, f"the broker: one confirm takes {_ms(trips.confirm)}")
    reads = 2 * trips.select
    if reads >= EXPLAINS * median:
        return Verdict(Limit.ROUND_TRIP, f"the round trip to PostgreSQL: two of {_ms(trips.select)}")
    rest = median - trips.confirm - reads
    if polls is not None and rest >= EXPLAINS * median and polls[0] / 2 <= rest <= polls[1]:
        shortest, longest = polls
        return Verdict(
            Limit.POLLING, f"the relay's polling: it looks every {_ms(shortest)} to {_ms(longest)}; a Hint wakes it"
        )
    return Verdict(
        Limit.NOT_CLEAR,
        f"not clear: a confirm takes {_ms(trips.confirm)}, a round trip to PostgreSQL {_ms(trips.select)}",
    )


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _part(share: float) -> str:
    """Estimates from medians can come out above the whole."""
    return "all" if share >= 0.95 else _percent(share)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
