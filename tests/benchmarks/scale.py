"""Our relay beside a million rows it cannot send, beside a million of one key, and with ten million to send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

from tests.benchmarks.bench import Bench
from tests.benchmarks.conditions import KEYS
from tests.benchmarks.cpu import memory_bytes
from tests.benchmarks.drain import drained, running
from tests.benchmarks.metrics import Metrics
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.outbox import QUEUE, TABLE, clean, fill, relay_command, waits

Crowd = Callable[[Bench, int], Awaitable[None]]

NOWHERE = "an exchange that does not exist"
HOT_QUEUE, HOT_KEY = "benchmark.hot", "hot"
CROWD = 1_000_000
SMALL_BODY = 100
HOLD_SECONDS, LOOK_SECONDS, OTHERS_SECONDS = 120.0, 1.0, 120.0


async def beside_nothing(bench: Bench, messages: int) -> Sample:
    """The messages alone, keyed; the relay is at work when they appear."""
    return await _others(bench, messages, _nothing)


async def beside_nowhere(bench: Bench, messages: int) -> Sample:
    """The same messages behind a million rows for an exchange that does not exist."""

    async def crowd(bench: Bench, size: int) -> None:
        await fill(bench.database, size, exchange=NOWHERE)

    return await _others(bench, messages, crowd, held=True)


async def beside_a_hot_key(bench: Bench, messages: int) -> Sample:
    """The same messages, of other keys, behind a million rows of one key."""

    async def crowd(bench: Bench, size: int) -> None:
        await bench.fresh_queue(HOT_QUEUE)
        await fill(bench.database, size, key=f"'{HOT_KEY}'", routing_key=HOT_QUEUE)

    return await _others(bench, messages, crowd)


async def _nothing(_: Bench, __: int) -> None:
    """No crowd."""


async def _others(bench: Bench, messages: int, crowd: Crowd, *, held: bool = False) -> Sample:
    """Fill the crowd, let the relay meet it, add the messages, and see them through: all of them, whatever slot.

    A few that do not get through are the finding, not a failure: after two minutes the rate is that of those which did,
    and ``left`` says how many did not.
    """
    await clean(bench)
    await crowd(bench, messages if bench.quick else CROWD)
    last = await bench.database.fetchval(f"SELECT coalesce(max(id), 0) FROM {TABLE}")
    await bench.settled(TABLE)
    async with running(bench, [relay_command()]) as relays:
        metrics = await Metrics.of(relays[0])
        if held:
            await _holds(metrics)
        await fill(bench.database, messages, key=f"'key ' || n % {KEYS}")
        others = f"id > {last}"  # by the primary key: to look through the crowd would take part of a second
        sample = await drained(bench, relays, QUEUE, messages, lambda: waits(bench, others), give_up=OTHERS_SECONDS)
        sample.figures["left"] = messages - await bench.depth(QUEUE)
    if not sample.figures["left"]:
        await bench.check_depth(QUEUE, messages)
    return sample


async def _holds(metrics: Metrics) -> None:
    """Wait until the relay has found that the exchange is not there."""
    deadline = time.monotonic() + HOLD_SECONDS
    while await metrics.value("relmsg_relay_held_destinations") < 1:
        if time.monotonic() > deadline:
            raise CheckFailed(f"the relay holds no destination after {HOLD_SECONDS:g} s")
        await asyncio.sleep(0.1)


async def ten_million(bench: Bench, messages: int) -> Sample:
    """A backlog from its first to its last message: rate and memory of the relay, in the first and the last tenth."""
    await clean(bench)
    await fill(bench.database, messages, size=SMALL_BODY)
    await bench.settled(TABLE)
    seen: list[tuple[float, int, int]] = []  # time, messages in the queue, bytes of the relay

    async def look(pid: int) -> None:
        while True:
            seen.append((time.monotonic(), await bench.depth(QUEUE), memory_bytes(pid)))
            await asyncio.sleep(LOOK_SECONDS if not bench.quick else LOOK_SECONDS / 100)

    async with running(bench, [relay_command()]) as relays:
        looking = asyncio.create_task(look(relays[0].pid))
        try:
            sample = await drained(bench, relays, QUEUE, messages, lambda: waits(bench))
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    await bench.check_depth(QUEUE, messages)
    sample.figures.update(_ends(seen, messages))
    return sample


def _ends(seen: list[tuple[float, int, int]], messages: int) -> dict[str, float]:
    """The first tenth is that after the first hundredth, in which the relay comes to its pace."""
    first = [each for each in seen if 0.01 * messages <= each[1] <= 0.11 * messages]
    last = [each for each in seen if 0.9 * messages <= each[1] < messages]
    if min(len(first), len(last)) < 2:
        raise CheckFailed("too short a run to compare its beginning with its end")
    rates = [(part[-1][1] - part[0][1]) / (part[-1][0] - part[0][0]) for part in (first, last)]
    sizes = [median(each[2] for each in part) for part in (first, last)]
    return {
        "rate_at_start": rates[0],
        "rate_at_end": rates[1],
        "rate_end_to_start": rates[1] / rates[0],
        "megabytes_at_start": sizes[0] / 1e6,
        "megabytes_at_end": sizes[1] / 1e6,
        "memory_end_to_start": sizes[1] / sizes[0],
    }
