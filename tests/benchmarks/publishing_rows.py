"""What publishing adds to a business transaction, and what the hint does to many writers (goals 4 and 3)."""

from __future__ import annotations

from functools import partial

from tests.benchmarks.model import Comparison, Contender, Goal, Row
from tests.benchmarks.publishing_stage import transactions, writers

ALONE, EIGHT = "1 transaction at a time", "8 transactions at a time"
OUTBOX_8, OUTBOX_32 = "8 writers, Outbox", "32 writers, Outbox"
DRIVER_8, DRIVER_32 = "8 writers, asyncpg", "32 writers, asyncpg"
PEAK = Goal(least=0.97)

COMPARISONS = (
    Comparison(
        "publishing",
        (
            Contender(EIGHT, partial(transactions, concurrency=8), 10, 2),
            Contender(ALONE, partial(transactions, concurrency=1), 8, 1),
        ),
        (
            Row("1 message in a transaction, 8 at a time, against none", Goal(most=1.15), EIGHT, figure="one"),
            Row("10 messages by `publish_many`, 8 at a time", Goal(most=1.3), EIGHT, figure="many"),
            Row("10 messages by 10 calls and the collector, 8 at a time", Goal(most=1.3), EIGHT, figure="collected"),
            Row("1 message, one transaction at a time", Goal(most=1.35), ALONE, figure="one"),
            Row("10 messages by `publish_many`, one transaction at a time", Goal(most=1.6), ALONE, figure="many"),
            Row("10 by 10 calls and the collector, one at a time", Goal(most=1.6), ALONE, figure="collected"),
        ),
    ),
    Comparison(
        "database peak with the hint",
        tuple(
            Contender(name, partial(writers, how=how, count=count), 8, 1)
            for name, how, count in (
                (OUTBOX_8, "outbox", 8),
                (OUTBOX_32, "outbox", 32),
                (DRIVER_8, "driver", 8),
                (DRIVER_32, "driver", 32),
            )
        ),
        tuple(
            Row(f"transactions a second with the hint, {name}, against without", PEAK, name, figure="hinted")
            for name in (OUTBOX_8, OUTBOX_32, DRIVER_8, DRIVER_32)
        ),
    ),
)
