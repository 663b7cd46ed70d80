"""The consumer against FastStream with an AsyncSession and aio-pika with an asyncpg pool (section 5 of the goals)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

from tests.benchmarks.bench import Bench
from tests.benchmarks.consumer_stage import QUEUE, consume
from tests.benchmarks.model import Comparison, Contender, Goal, Row, Sample
from tests.benchmarks.program import python

FASTSTREAM, AIO_PIKA = "FastStream + AsyncSession", "aio-pika + asyncpg pool of 10"
ALONE, FLUSHED, UNFLUSHED = "ORM handler, a transaction each", "ORM handler, group, flush", "ORM handler, group"
CORE, DRIVER, LIST = "Core handler, group", "asyncpg handler, group", "list handler"
FIRST, DUPLICATES = "first deliveries", "duplicates only"
GROUP, LIST_GROUP = 50, 200

Run = Callable[[Bench, int], Awaitable[Sample]]


async def faststream(bench: Bench, messages: int) -> Sample:
    """Pool of 10, prefetch 50."""
    return await consume(bench, python("consumer_faststream", QUEUE, messages), messages)


async def aio_pika(bench: Bench, messages: int) -> Sample:
    """Prefetch 50 and 500, the better one."""
    samples = [
        await consume(bench, python("consumer_aio_pika", QUEUE, messages, prefetch), messages) for prefetch in (50, 500)
    ]
    return max(samples, key=lambda sample: sample.figure("rate"))


def relmsg(variant: str, *, handled_before: bool = False, **handler: object) -> Run:
    """Our inbox with one of the handlers of ``contenders/consumer_relmsg.py``."""
    return partial(_relmsg, variant=variant, options={"handler": handler}, handled_before=handled_before)


async def _relmsg(
    bench: Bench, messages: int, *, variant: str, options: dict[str, object], handled_before: bool
) -> Sample:
    command = python("consumer_relmsg", QUEUE, messages, variant, json.dumps(options))
    return await consume(bench, command, messages, handled_before=handled_before)


COMPARISONS = (
    Comparison(
        "consumer",
        (
            Contender(ALONE, relmsg("orm"), 3_000, 300),
            Contender(FASTSTREAM, faststream, 1_500, 300, peer=True),
            Contender(AIO_PIKA, aio_pika, 3_000, 300, peer=True),
        ),
        (
            Row(
                "ORM handler, one transaction a message, against FastStream + AsyncSession",
                Goal(1.7),
                ALONE,
                FASTSTREAM,
            ),
        ),
    ),
    Comparison(
        "consumer duplicates",
        (
            Contender(FIRST, relmsg("orm"), 3_000, 600),
            Contender(DUPLICATES, relmsg("orm", handled_before=True), 6_000, 600),
        ),
        (Row("duplicates only against first deliveries", Goal(2), DUPLICATES, FIRST),),
    ),
)
