"""The rows of a million messages and more: ``make bench-scale``."""

from __future__ import annotations

from tests.benchmarks.model import Comparison, Contender, Goal, Row
from tests.benchmarks.scale import beside_a_hot_key, beside_nothing, beside_nowhere, ten_million

ALONE, NOWHERE, HOT = "alone", "behind 1,000,000 rows without an exchange", "behind 1,000,000 rows of one key"
BACKLOG = "10,000,000 rows"

COMPARISONS = (
    Comparison(
        "crowds",
        (
            Contender(ALONE, beside_nothing, 60_000, 3_000),
            Contender(NOWHERE, beside_nowhere, 60_000, 3_000),
            Contender(HOT, beside_a_hot_key, 60_000, 3_000),
        ),
        (
            Row("1,000,000 rows wait for an exchange that does not exist: the others", Goal(0.8), NOWHERE, ALONE),
            Row("one key holds 1,000,000 rows: all other keys", Goal(0.8), HOT, ALONE),
        ),
        scale=True,
    ),
    Comparison(
        "backlog",
        (Contender(BACKLOG, ten_million, 10_000_000, 30_000),),
        (
            Row(
                "10,000,000 rows of 100 B: rate at the end against the start",
                Goal(0.9),
                BACKLOG,
                figure="rate_end_to_start",
            ),
            Row(
                "memory of the relay at the end against the start",
                Goal(most=1.1),
                BACKLOG,
                figure="memory_end_to_start",
            ),
        ),
        scale=True,
        repetitions=1,
    ),
)
