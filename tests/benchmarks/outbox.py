"""Our own outbox in the suite: filled by SQL, drained by `relmsg relay` as a user deploys it."""

from __future__ import annotations

import sys
from pathlib import Path

import asyncpg

from tests.benchmarks.bench import Bench
from tests.benchmarks.drain import drained, running
from tests.benchmarks.model import Sample

TABLE = "relmsg.outbox_message"
QUEUE = "benchmark"
BODY_BYTES = 1024

# As an application writes it: an id, a type, two headers of its own.
FILL = """
INSERT INTO relmsg.outbox_message
       (message_id, type, source, exchange, routing_key, ordering_key, headers, content_type, body)
SELECT gen_random_uuid(), 'order.placed', 'orders', $1, $2, :key,
       '{"tenant": "acme", "region": "eu-west-1"}'::jsonb, 'application/json', convert_to(repeat('x', $3), 'UTF8')
  FROM generate_series(1, $4::bigint) AS n
"""
FILL_SECONDS = 1800.0


def relay_command() -> list[str]:
    """The relay with its defaults, as the documentation starts it; on a free port for its probes."""
    return [str(Path(sys.executable).with_name("relmsg")), "relay", "--probes", "127.0.0.1:0"]


async def fill(
    database: asyncpg.Connection,
    messages: int,
    *,
    key: str = "NULL",
    exchange: str = "",
    routing_key: str = QUEUE,
    size: int = BODY_BYTES,
) -> None:
    """Insert so many rows. ``key`` is SQL: the ordering key of row number ``n``."""
    await database.execute(FILL.replace(":key", key), exchange, routing_key, size, messages, timeout=FILL_SECONDS)


async def waits(bench: Bench, condition: str = "true") -> bool:
    """Whether any such row waits; cheap, unlike counting them, if an index leads there or hardly any row waits."""
    return bool(await bench.database.fetchval(f"SELECT EXISTS (SELECT FROM {TABLE} WHERE {condition})"))


async def clean(bench: Bench) -> None:
    """No row, no lease of a relay that has gone, no message."""
    await bench.empty(TABLE)
    await bench.database.execute("DELETE FROM relmsg.outbox_relay")
    await bench.database.execute("UPDATE relmsg.outbox_slot SET owner = NULL, expires_at = NULL")
    await bench.fresh_queue(QUEUE)


async def relay(bench: Bench, messages: int, *, key: str = "NULL") -> Sample:
    """Drain a full outbox with one relay."""
    await clean(bench)
    await fill(bench.database, messages, key=key)
    await bench.settled(TABLE)
    async with running(bench, [relay_command()]) as relays:
        sample = await drained(bench, relays, QUEUE, messages, lambda: waits(bench))
    await bench.check_depth(QUEUE, messages)
    return sample
