"""The relays of others, tuned as they should be: see their programs in ``contenders/``. They fill their own tables."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks.bench import Bench
from tests.benchmarks.drain import drained, running
from tests.benchmarks.model import Sample
from tests.benchmarks.outbox import BODY_BYTES, QUEUE
from tests.benchmarks.program import Program, python

PREPARE_SECONDS = 120.0
HEADERS = """'{"tenant": "acme", "region": "eu-west-1"}'::jsonb"""
ROWS = f"convert_to(repeat('x', {BODY_BYTES}), 'UTF8') AS body, {HEADERS} AS headers FROM generate_series(1, $1::int)"


async def txoutbox(bench: Bench, messages: int) -> Sample:
    """Batch 500, concurrency 500, no strict order, rows deleted."""
    fill = f"INSERT INTO tx_outbox (topic, payload, headers) SELECT '{QUEUE}', body, headers FROM (SELECT {ROWS}) r"
    return await _relay(bench, python("relay_txoutbox"), "tx_outbox", fill, messages)


async def faststream_outbox(bench: Bench, messages: int) -> Sample:
    """20 workers, fetch 500, terminal flush 100."""
    fill = f"INSERT INTO fs_outbox (queue, payload, headers) SELECT '{QUEUE}', body, headers FROM (SELECT {ROWS}) r"
    return await _relay(bench, python("relay_faststream", QUEUE), "fs_outbox", fill, messages)


async def naive(bench: Bench, messages: int) -> Sample:
    """ORM select 100, await each publish, mark it sent, commit."""
    fill = (
        "INSERT INTO naive_outbox (message_id, type, routing_key, headers, body, sent) "
        f"SELECT gen_random_uuid(), 'order.placed', '{QUEUE}', headers, body, false FROM (SELECT {ROWS}) r"
    )
    return await _relay(bench, python("relay_naive", 100), "naive_outbox", fill, messages, waiting="NOT sent")


async def _relay(
    bench: Bench, command: Sequence[str], table: str, fill: str, messages: int, *, waiting: str = "true"
) -> Sample:
    async with Program([*command, "prepare"], bench.environment) as preparing:
        await preparing.line(PREPARE_SECONDS)
    await bench.empty(table)
    await bench.fresh_queue(QUEUE)
    await bench.database.execute(fill, messages)
    await bench.settled(table)

    async def waits() -> bool:
        return bool(await bench.database.fetchval(f"SELECT EXISTS (SELECT FROM {table} WHERE {waiting})"))

    async with running(bench, [command]) as relays:
        sample = await drained(bench, relays, QUEUE, messages, waits)
    await bench.check_depth(QUEUE, messages)
    return sample
