"""Running a relay, ours or another's, and watching it from outside, in the same way whoever it is.

A relay is a process that runs for ever, so nobody can tell it "go" and nobody says "done". It is measured from the
first moment messages are seen in the broker's queue until all are there and none waits in the outbox. Only the messages
in between are counted, so start, connecting and the first read are not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from tests.benchmarks.bench import Bench
from tests.benchmarks.model import CheckFailed, Cpu, Sample
from tests.benchmarks.program import Program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Looking costs the broker and us; so it is done rarely until the end is near.
SELDOM, OFTEN = 0.2, 0.005
FIRST_SECONDS, STALL_SECONDS, REST_SECONDS = 60.0, 60.0, 600.0


@asynccontextmanager
async def running(bench: Bench, commands: Sequence[Sequence[str]]) -> AsyncIterator[list[Program]]:
    """These relays, each a process, until the block is left."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Program(command, bench.environment)) for command in commands]


async def drained(
    bench: Bench,
    relays: Sequence[Program],
    queue: str,
    messages: int,
    waits: Callable[[], Awaitable[bool]],
    *,
    give_up: float | None = None,
) -> Sample:
    """Watch the relays move ``messages`` rows into the queue. Afterwards, when they have ended, ``check_depth`` is due.

    :param give_up: seconds after which those that have come by then make the sample.
    :raises CheckFailed: if a relay ends, or, unless we may give up, no message comes for a minute.
    """
    pids = [relay.pid for relay in relays]
    first = await _at_least(bench, relays, queue, 1, FIRST_SECONDS, give_up)
    if not first:
        return Sample(0, give_up or FIRST_SECONDS, Cpu(0.0, 0.0, 0.0))
    began, before = time.perf_counter(), bench.cpu(pids)
    last = await _at_least(bench, relays, queue, messages, STALL_SECONDS, give_up)
    while last >= messages and await waits():
        if time.perf_counter() - began > REST_SECONDS:
            raise CheckFailed(f"the broker holds all {messages:,} messages, and rows still wait in the outbox")
        await asyncio.sleep(OFTEN)
    seconds = time.perf_counter() - began
    if last == first and last < messages:
        return Sample(0, seconds, Cpu(0.0, 0.0, 0.0))
    if last <= first:
        raise CheckFailed(f"all {messages:,} messages came at once: too few to measure")
    return Sample(last - first, seconds, bench.cpu(pids).since(before, last - first))


async def _at_least(
    bench: Bench, relays: Sequence[Program], queue: str, wanted: int, stall: float, give_up: float | None = None
) -> int:
    """Wait until the queue holds so many; how many it holds then."""
    began = moved_at = time.monotonic()
    begun_with = seen = await bench.depth(queue)
    while seen < wanted:
        rate = (seen - begun_with) / max(time.monotonic() - began, OFTEN)
        await asyncio.sleep(min(SELDOM, max(OFTEN, (wanted - seen) / rate / 2)) if rate else OFTEN)
        depth = await bench.depth(queue)
        now = time.monotonic()
        if give_up is not None and now - began > give_up:
            break
        if depth != seen:
            seen, moved_at = depth, now
        elif give_up is None and now - moved_at > stall:
            raise CheckFailed(f"no message came for {stall:g} s, {seen:,} of {wanted:,} did\n{relays[0].said()}")
        for relay in relays:
            if relay.ended:
                raise CheckFailed(f"a relay ended\n{relay.said()}")
    return seen
