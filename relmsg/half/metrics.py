"""What a coordinator, and a member of a producer group, tell Prometheus."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from relmsg.half.protocol import Answer, Refusal
from relmsg.half.state import HalfState
from relmsg.half.store import Figures

OUTCOMES = {HalfState.COMMITTED: "committed", HalfState.ROLLED_BACK: "rolled_back", HalfState.PARKED: "parked"}

CheckFailure: TypeAlias = Literal["checker_failed", "unreadable", "unanswered", "internal_error"]


class CheckerMetrics:
    """Checks that a member of a producer group could not answer as it should, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._failures = Counter(
            "relmsg_half_checker_failures", "Checks that went wrong, by reason", ["reason"], registry=self.registry
        )
        for reason in get_args(CheckFailure):
            self._failures.labels(reason)

    def failed(self, reason: CheckFailure) -> None:
        """A check went wrong: its checker failed, took too long or returned no Resolution; it is none of the protocol,
        or could not be decrypted; its answer was not confirmed by the broker; or relmsg itself failed over it."""
        self._failures.labels(reason).inc()


class CoordinatorMetrics:
    """The figures of one coordinator.

    Labels are few and never hold ids or groups. The gauges are those of the whole table, whichever coordinator tells
    them: take the largest, not the sum. What an operator decides is in the table, and counted by nobody.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._open = Gauge("relmsg_half_open", "Half messages that wait for a decision", registry=self.registry)
        self._oldest = Gauge("relmsg_half_oldest_seconds", "Age of the oldest of them", registry=self.registry)
        self._parked = Gauge(
            "relmsg_half_parked", "Half messages set aside until a person decides", registry=self.registry
        )
        self._prepared = Counter("relmsg_half_prepared", "Half messages taken in", registry=self.registry)
        self._outcomes = Counter(
            "relmsg_half_outcomes", "What half messages have become here", ["outcome"], registry=self.registry
        )
        self._sent = Counter("relmsg_half_checks_sent", "Checks in the queues of groups", registry=self.registry)
        self._received = Counter(
            "relmsg_half_checks_received", "Checks that a member has begun to answer", registry=self.registry
        )
        self._checks = Counter("relmsg_half_checks", "Checks answered", ["answer"], registry=self.registry)
        self._refused = Counter(
            "relmsg_half_refused", "Decisions and answers that did not count", ["reason"], registry=self.registry
        )
        self._malformed = Counter(
            "relmsg_half_malformed", "Deliveries that went to the error queue", registry=self.registry
        )
        self._faults = Counter(
            "relmsg_half_internal_errors",
            "Deliveries, and rows to be checked, over which relmsg itself failed",
            registry=self.registry,
        )
        for outcome in OUTCOMES.values():
            self._outcomes.labels(outcome)
        for answer in Answer:
            self._checks.labels(answer.value)
        for refusal in Refusal:
            self._refused.labels(refusal.name.lower())

    def prepared(self) -> None:
        """A half message was taken in."""
        self._prepared.inc()

    def ended(self, state: HalfState, count: int = 1) -> None:
        """So many half messages have come to this state, by a decision or for want of one."""
        self._outcomes.labels(OUTCOMES[state]).inc(count)

    def sent(self, count: int) -> None:
        """So many checks are in the queues of their groups."""
        self._sent.inc(count)

    def received(self) -> None:
        """A member has received a check, and this was not known before."""
        self._received.inc()

    def answered(self, answer: Answer) -> None:
        """A checker has answered."""
        self._checks.labels(answer.value).inc()

    def refused(self, reason: Refusal) -> None:
        """A decision or an answer did not count."""
        self._refused.labels(reason.name.lower()).inc()

    def malformed(self) -> None:
        """A delivery that is none of the protocol is confirmed in the error queue."""
        self._malformed.inc()

    def failed(self) -> None:
        """Carrying out a delivery, or making a check of a row, met a fault in relmsg."""
        self._faults.inc()

    def measured(self, figures: Figures) -> None:
        """How it stands in the table now."""
        self._open.set(figures.open)
        self._oldest.set(figures.oldest_seconds)
        self._parked.set(figures.parked)
