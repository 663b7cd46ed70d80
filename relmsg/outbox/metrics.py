"""What a relay tells Prometheus."""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from relmsg.broker.receipt import Receipt


class RelayMetrics:
    """The figures of one relay, in a registry of their own.

    Labels are few and never hold ids or routing keys. The gauges of the outbox cover the slots this relay owns, so that
    the sum over all relays is the whole; ``relmsg_outbox_parked`` counts the whole table.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.backlog = Gauge("relmsg_outbox_backlog", "Committed messages not yet confirmed", registry=self.registry)
        self.oldest = Gauge("relmsg_outbox_oldest_seconds", "Age of the oldest of them", registry=self.registry)
        self.parked = Gauge("relmsg_outbox_parked", "Messages set aside until a person decides", registry=self.registry)
        self.receipts = Counter(
            "relmsg_relay_receipts", "What became of publishes", ["receipt"], registry=self.registry
        )
        self.slots = Gauge("relmsg_relay_slots", "Slots this relay owns", registry=self.registry)
        self.held = Gauge(
            "relmsg_relay_held_destinations", "Destinations that lead nowhere for now", registry=self.registry
        )
        self.in_flight = Gauge("relmsg_relay_in_flight", "Messages sent and not yet confirmed", registry=self.registry)
        self.blocked = Gauge(
            "relmsg_relay_blocked_seconds_total", "Time the broker refused publishing", registry=self.registry
        )
        self.reconnects = Gauge(
            "relmsg_relay_reconnects_total", "Connections lost and made again", registry=self.registry
        )
        self.reads = Histogram("relmsg_relay_read_seconds", "Time of one read of the outbox", registry=self.registry)
        self.hints = Counter("relmsg_relay_hints", "Hints heard that something was committed", registry=self.registry)
        self.looks_back = Histogram(
            "relmsg_relay_look_back_seconds", "Time of one look back for rows committed late", registry=self.registry
        )
        for receipt in ("confirmed", "returned", "nacked", "unknown"):
            self.receipts.labels(receipt)

    def count(self, receipts: Iterable[Receipt]) -> None:
        """Count the receipts of a batch."""
        for kind, number in Counted(map(type, receipts)).items():
            self.receipts.labels(kind.__name__.lower()).inc(number)
