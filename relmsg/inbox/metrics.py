"""What a consumer counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from relmsg.inbox.gate import Gate
from relmsg.inbox.handler import Handler
from relmsg.inbox.outcome import Outcome


class Metrics:
    """Counters in a registry of their own, so that two inboxes in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}
        where = ("consumer", "queue")
        self._deliveries = Counter(
            "relmsg_consumer_deliveries",
            "Deliveries that came to an end, by outcome",
            (*where, "outcome"),
            registry=self.registry,
        )
        self._failures = Counter(
            "relmsg_consumer_failures",
            "Messages in the error queue, by reason",
            (*where, "reason"),
            registry=self.registry,
        )
        self._set_aside = Counter(
            "relmsg_consumer_copies_refused",
            "Failed messages left unacked, because the broker takes no error copy of them",
            where,
            registry=self.registry,
        )
        self._retries = Counter(
            "relmsg_consumer_retries", "Attempts after the first", (*where, "type"), registry=self.registry
        )
        self._duration = Histogram(
            "relmsg_consumer_handler_seconds", "Time in the handler", (*where, "type"), registry=self.registry
        )
        self._groups = Counter(
            "relmsg_consumer_groups",
            "Transactions shared by several messages, by outcome",
            (*where, "type", "outcome"),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "relmsg_consumer_in_flight", "Deliveries received and not settled", ("queue",), registry=self.registry
        )
        self._paused = Gauge("relmsg_consumer_paused", "1 while a service is away", registry=self.registry)
        self._paused_seconds = Gauge(
            "relmsg_consumer_paused_seconds", "Time paused because a service was away", registry=self.registry
        )

    def watch(self, gates: Sequence[Gate]) -> None:
        """Report the pauses of these gates."""
        self._paused.set_function(lambda: 0.0 if all(gate.is_open for gate in gates) else 1.0)
        self._paused_seconds.set_function(lambda: sum(gate.paused_seconds for gate in gates))

    def received(self, queue: str, count: int) -> None:
        """Deliveries have arrived."""
        self._child(self._in_flight, queue).inc(count)

    def settled(self, consumer: str, queue: str, outcome: Outcome, count: int = 1) -> None:
        """So many deliveries have come to the same end."""
        self._child(self._in_flight, queue).dec(count)
        self._child(self._deliveries, consumer, queue, type(outcome).__name__.lower()).inc(count)

    def outcomes(self) -> dict[str, int]:
        """How many deliveries have come to each end so far, in all queues."""
        counted: Counts[str] = Counts()
        for family in self._deliveries.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    counted[sample.labels["outcome"]] += int(sample.value)
        return dict(counted)

    def failed(self, consumer: str, queue: str, reason: str) -> None:
        """A message is confirmed in the error queue."""
        self._failures.labels(consumer, queue, reason).inc()

    def set_aside(self, consumer: str, queue: str) -> None:
        """A failed message is left unacked: the broker takes no copy of it."""
        self._set_aside.labels(consumer, queue).inc()

    def retried(self, handler: Handler) -> None:
        """A handler is tried again."""
        self._retries.labels(handler.consumer, handler.queue, handler.type).inc()

    def took(self, handler: Handler, seconds: float) -> None:
        """A handler was called once, and took so long."""
        self._child(self._duration, handler.consumer, handler.queue, handler.type).observe(seconds)

    def grouped(self, handler: Handler, committed: bool) -> None:
        """Several messages shared a transaction, and it was committed or rolled back."""
        outcome = "committed" if committed else "rolled_back"
        self._child(self._groups, handler.consumer, handler.queue, handler.type, outcome).inc()

    def _child(self, metric: Any, *labels: str) -> Any:
        """``metric.labels(…)``, looked up once: it takes a lock and goes through all label names each time."""
        child = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return child
