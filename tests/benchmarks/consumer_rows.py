"""The consumer against FastStream with an AsyncSession and aio-pika with an asyncpg pool (section 5 of the goals)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

from tests.benchmarks.bench import Bench
from tests.benchmarks.consumer_stage import QUEUE, consume, remember
from tests.benchmarks.model import Comparison, Contender, Goal, Row, Sample
from tests.benchmarks.program import python

FASTSTREAM, AIO_PIKA = "FastStream + AsyncSession", "aio-pika + asyncpg pool of 10"
ALONE, FLUSHED, UNFLUSHED = "ORM handler, a transaction each", "ORM handler, group, flush", "ORM handler, group"
CORE, DRIVER = "Core handler, group", "asyncpg handler, group"
LIST = "list handler"
WIDE_DRIVER, WIDE_LIST = "asyncpg handler, group=200", "list handler, group=1000"
FIRST, DUPLICATES = "first deliveries", "duplicates only"
EMPTY, LARGE = "empty inbox", "inbox of 10,000,000"
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


def relmsg(variant: str, *, remembered: int = 0, handled_before: bool = False, **handler: object) -> Run:
    """Our inbox with one of the handlers of ``contenders/consumer_relmsg.py``, told these handler options.

    ``remembered``: with an inbox of so many messages (in a schema of its own, filled once).
    """
    return partial(_relmsg, variant=variant, handler=handler, remembered=remembered, handled_before=handled_before)


async def _relmsg(
    bench: Bench, messages: int, *, variant: str, handler: dict[str, object], remembered: int, handled_before: bool
) -> Sample:
    schema = "relmsg"
    if remembered:
        schema = "relmsg_remembering"
        await remember(bench, schema, remembered // 100 if bench.quick else remembered)
    options = {"inbox": {"schema": schema}, "handler": handler}
    command = python("consumer_relmsg", QUEUE, messages, variant, json.dumps(options))
    return await consume(bench, command, messages, schema=schema, handled_before=handled_before)


COMPARISONS = (
    Comparison(
        "consumer",
        (
            Contender(ALONE, relmsg("orm", group=1), 3_000, 300),
            Contender(FASTSTREAM, faststream, 1_500, 300, peer=True),
            Contender(FLUSHED, relmsg("flushed", group=GROUP), 6_000, 600),
            Contender(UNFLUSHED, relmsg("orm", group=GROUP), 12_000, 600),
            Contender(CORE, relmsg("core", group=GROUP), 15_000, 1_000),
            Contender(DRIVER, relmsg("driver", group=GROUP), 20_000, 1_000),
            Contender(WIDE_DRIVER, relmsg("driver", group=200), 20_000, 1_000),
            Contender(AIO_PIKA, aio_pika, 3_000, 300, peer=True),
            Contender(LIST, relmsg("many", group=LIST_GROUP), 50_000, 2_000),
            Contender(WIDE_LIST, relmsg("many", group=1000), 50_000, 2_000),
        ),
        (
            Row(
                "ORM handler, one transaction a message, against FastStream + AsyncSession",
                Goal(1.7),
                ALONE,
                FASTSTREAM,
            ),
            Row("ORM handler, group commit, flush per message, against the same", Goal(4), FLUSHED, FASTSTREAM),
            Row("ORM handler, group commit, flush left to relmsg, against the same", Goal(4), UNFLUSHED, FASTSTREAM),
            Row("Core handler, group commit, against aio-pika + asyncpg pool of 10", Goal(6), CORE, AIO_PIKA),
            Row("asyncpg handler, group commit, against the same", Goal(6), DRIVER, AIO_PIKA),
            Row("asyncpg handler, `group=200`, against the same", Goal(6), WIDE_DRIVER, AIO_PIKA),
            Row("list handler against the same", Goal(16), LIST, AIO_PIKA),
            Row("list handler, `group=1000`, against the same", Goal(16), WIDE_LIST, AIO_PIKA),
        ),
    ),
    Comparison(
        "consumer duplicates",
        (
            Contender(FIRST, relmsg("flushed", group=GROUP), 6_000, 600),
            Contender(DUPLICATES, relmsg("flushed", handled_before=True, group=GROUP), 12_000, 600),
        ),
        (Row("duplicates only against first deliveries", Goal(2), DUPLICATES, FIRST),),
    ),
    Comparison(
        "large inbox",
        (
            Contender(EMPTY, relmsg("core", group=GROUP), 6_000, 600),
            Contender(LARGE, relmsg("core", group=GROUP, remembered=10_000_000), 6_000, 600),
        ),
        (Row("inbox of 10,000,000 rows against an empty one", Goal(0.8), LARGE, EMPTY),),
        scale=True,
    ),
)
