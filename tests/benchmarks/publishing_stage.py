"""Runs of the publishing side, and that every row is there afterwards."""

from __future__ import annotations

from tests.benchmarks import outbox
from tests.benchmarks.bench import Bench
from tests.benchmarks.contenders.publishing_order import TABLE
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.program import python, run_program

VARIANTS = {"none": 0, "one": 1, "many": 10, "ten": 10, "collected": 10}  # messages in a transaction
BLOCK, QUICK_BLOCK = 96, 16


async def transactions(bench: Bench, rounds: int, *, concurrency: int) -> Sample:
    """So many rounds of a block of each variant; one more goes before, uncounted."""
    block = QUICK_BLOCK if bench.quick else BLOCK
    await _clean(bench)
    command = python("publishing_transactions", concurrency, rounds, block)
    sample = await run_program(bench, command, rounds * block * len(VARIANTS))
    blocks = (rounds + 1) * block
    await _check(bench, orders=blocks * len(VARIANTS), messages=blocks * sum(VARIANTS.values()))
    return sample


async def writers(bench: Bench, rounds: int, *, how: str, count: int) -> Sample:
    """So many rounds of a block with the hint and one without; one more goes before, uncounted."""
    block = count * (4 if bench.quick else 600 // count)
    await _clean(bench)
    command = python("publishing_writers", how, count, rounds, block)
    sample = await run_program(bench, command, 2 * rounds * block)
    written = 2 * (rounds + 1) * block
    await _check(bench, orders=written, messages=written)
    return sample


async def _clean(bench: Bench) -> None:
    await bench.database.execute(TABLE)
    await bench.empty("placed_order")
    await outbox.clean(bench)
    await bench.settled("placed_order", outbox.TABLE)


async def _check(bench: Bench, *, orders: int, messages: int) -> None:
    found = await bench.rows("placed_order"), await bench.rows(outbox.TABLE)
    if found != (orders, messages):
        raise CheckFailed(f"{found[0]} orders and {found[1]} messages were written, expected {orders} and {messages}")
