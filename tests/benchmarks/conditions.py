"""Our relay under conditions: several of it, keys, and a table full of dead rows. Measured against itself without."""

from __future__ import annotations

import asyncio
import time
from statistics import median

import asyncpg

from tests.benchmarks.bench import Bench
from tests.benchmarks.drain import drained, running
from tests.benchmarks.metrics import Metrics
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.outbox import QUEUE, TABLE, clean, fill, relay, relay_command, waits

KEYS = 6_000
SHARED_SECONDS = 30.0
IDLE_READS = 20
LOOKS_BACK_SECONDS = 12.0  # the relay reads again what was committed in the last 10 s: relmsg/outbox/positions.py

# Whether so many relays have shared the slots fairly between them.
SHARED = """
SELECT count(*) = $1 AND sum(slots) = 64 AND min(slots) >= 64 / $1 - 1
  FROM (SELECT count(*) AS slots FROM relmsg.outbox_slot WHERE expires_at > now() GROUP BY owner) AS shares
"""


async def keyed(bench: Bench, messages: int) -> Sample:
    """Every message has one of 6,000 ordering keys, in turn."""
    return await relay(bench, messages, key=f"'key ' || n % {KEYS}")


async def one_relay(bench: Bench, messages: int) -> Sample:
    """One relay that holds all slots when the rows appear."""
    return await _already_running(bench, messages, 1)


async def two_relays(bench: Bench, messages: int) -> Sample:
    """Two relays that have shared the slots when the rows appear; each message id is in the queue exactly once."""
    sample = await _already_running(bench, messages, 2)
    ids = await bench.message_ids(QUEUE, messages)
    if len(set(ids)) != messages:
        raise CheckFailed(f"two relays sent {len(ids) - len(set(ids))} of {messages:,} messages twice")
    return sample


async def _already_running(bench: Bench, messages: int, relays: int) -> Sample:
    """The rows are written before, and appear all at once by their commit."""
    await clean(bench)
    writer = await asyncpg.connect(bench.dsn)
    try:
        async with running(bench, [relay_command()] * relays) as processes:
            async with writer.transaction():
                await fill(writer, messages)
                await bench.database.execute("CHECKPOINT")
                await _shared(bench, relays)
            sample = await drained(bench, processes, QUEUE, messages, lambda: waits(bench))
    finally:
        await writer.close()
    await bench.check_depth(QUEUE, messages)
    return sample


async def _shared(bench: Bench, relays: int) -> None:
    deadline = time.monotonic() + SHARED_SECONDS
    while not await bench.database.fetchval(SHARED, relays):
        if time.monotonic() > deadline:
            raise CheckFailed(f"{relays} relays did not share the slots within {SHARED_SECONDS:g} s")
        await asyncio.sleep(0.05)


async def after_dead_rows(bench: Bench, messages: int) -> Sample:
    """Drain with 3.3 times as many dead rows in the table as there are messages, kept by an old snapshot."""
    old = await asyncpg.connect(bench.dsn)
    try:
        async with old.transaction(isolation="repeatable_read"):
            await old.fetchval("SELECT count(*) FROM relmsg.outbox_slot")  # the snapshot is taken by the first query
            return await _after_others(bench, messages, polls=True)
    finally:
        await old.close()


async def after_vacuum(bench: Bench, messages: int) -> Sample:
    """The same where nobody holds a snapshot and the dead rows have been removed."""
    return await _after_others(bench, messages)


async def _after_others(bench: Bench, messages: int, *, polls: bool = False) -> Sample:
    """One relay drains the first rows, which are then dead, and then those that are measured; then it polls idly.

    ``poll_just_after_ms`` is an empty poll while the relay still looks back over what it has just sent, ``poll_ms`` one
    after that: the middle one of twenty each, so that a full sweep among them does not count.
    """
    await clean(bench)
    dead = messages * 10 // 3
    async with running(bench, [relay_command()]) as relays:
        metrics = await Metrics.of(relays[0])
        await _shared(bench, 1)
        await fill(bench.database, dead)
        await drained(bench, relays, QUEUE, dead, lambda: waits(bench))
        await bench.check_depth(QUEUE, dead)
        await bench.fresh_queue(QUEUE)
        await bench.settled(TABLE)
        await fill(bench.database, messages)
        sample = await drained(bench, relays, QUEUE, messages, lambda: waits(bench))
        if polls:
            reads = 3 if bench.quick else IDLE_READS
            sample.figures["poll_just_after_ms"] = await _poll_ms(metrics, reads)
            await asyncio.sleep(0 if bench.quick else LOOKS_BACK_SECONDS)
            sample.figures["poll_ms"] = await _poll_ms(metrics, reads)
    await bench.check_depth(QUEUE, messages)
    return sample


async def _poll_ms(metrics: Metrics, reads: int) -> float:
    return median(await metrics.single_observations("relmsg_relay_read_seconds", reads)) * 1000
