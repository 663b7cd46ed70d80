"""Our own outbox in the suite: filled by SQL, drained by `relmsg relay` as a user deploys it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.drain import drain
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


def relay_command() -> list[str]:
    """The relay with its defaults, as the documentation starts it; on a port nobody else has for its probes."""
    return [str(Path(sys.executable).with_name("relmsg")), "relay", "--probes", "127.0.0.1:0"]


async def fill(
    bench: Bench,
    messages: int,
    *,
    key: str = "NULL",
    exchange: str = "",
    routing_key: str = QUEUE,
    size: int = BODY_BYTES,
) -> None:
    """Commit so many rows. ``key`` is SQL: the ordering key of row number ``n``."""
    await bench.database.execute(FILL.replace(":key", key), exchange, routing_key, size, messages, timeout=1800)


async def waiting(bench: Bench) -> int:
    """1 while a row waits; cheap, unlike counting them."""
    return await bench.rows(f"(SELECT 1 FROM {TABLE} LIMIT 1) AS any_row")


async def clean(bench: Bench) -> None:
    """No row, no lease of a relay that has gone, no message."""
    await bench.empty(TABLE)
    await bench.database.execute("DELETE FROM relmsg.outbox_relay")
    await bench.database.execute("UPDATE relmsg.outbox_slot SET owner = NULL, expires_at = NULL")
    await bench.fresh_queue(QUEUE)


async def relay(bench: Bench, messages: int, *, relays: int = 1, key: str = "NULL") -> Sample:
    """Drain a full outbox with our relay."""
    await clean(bench)
    await fill(bench, messages, key=key)
    await bench.settled(TABLE)
    return await drain(bench, [relay_command()] * relays, QUEUE, messages, lambda: waiting(bench))
