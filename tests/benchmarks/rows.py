"""All comparisons, in the order of the table. Those of a new file are added here."""

from __future__ import annotations

from tests.benchmarks.consumer_rows import COMPARISONS as CONSUMER
from tests.benchmarks.latency_rows import COMPARISONS as LATENCY
from tests.benchmarks.model import Comparison
from tests.benchmarks.publishing_rows import COMPARISONS as PUBLISHING
from tests.benchmarks.relay_rows import COMPARISONS as RELAY
from tests.benchmarks.scale_rows import COMPARISONS as SCALE

COMPARISONS: tuple[Comparison, ...] = (
    *RELAY,
    *LATENCY,
    *PUBLISHING,
    *CONSUMER,
    *SCALE,
)
