"""Running a relay, ours or another's, against an outbox that is full before it starts.

A relay is a process that runs for ever, so nobody can tell it "go" and nobody says "done". It is watched from outside,
in the same way whoever it is: from the first moment messages are seen in the broker's queue until all are there and
none waits in the outbox. Only the messages in between are counted, so start, connecting and the first read are not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from tests.benchmarks.bench import Bench
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.program import Program

LOOK_SECONDS = 0.02
FIRST_SECONDS, STALL_SECONDS = 60.0, 30.0


async def drain(
    bench: Bench,
    commands: Sequence[Sequence[str]],
    queue: str,
    messages: int,
    pending: Callable[[], Awaitable[int]],
    environment: Mapping[str, str] | None = None,
) -> Sample:
    """Let relays (one process each) move ``messages`` rows into the queue, and check that each came exactly once.

    :raises CheckFailed: if a relay ends, stalls, leaves a row behind, or sends a message twice.
    """
    async with AsyncExitStack() as stack:
        relays = [
            await stack.enter_async_context(Program(command, bench.environment | dict(environment or {})))
            for command in commands
        ]
        pids = [relay.pid for relay in relays]
        first = await _at_least(bench, relays, queue, 1, FIRST_SECONDS)
        began, before = time.perf_counter(), bench.cpu(pids)
        last = await _at_least(bench, relays, queue, messages, STALL_SECONDS)
        while await pending():
            await asyncio.sleep(LOOK_SECONDS)
            if time.perf_counter() - began > 600:
                raise CheckFailed(f"the broker holds all {messages} messages, and rows still wait in the outbox")
        seconds = time.perf_counter() - began
        moved = last - first
        if moved <= 0:
            raise CheckFailed(f"all {messages} messages came at once: too few to measure")
        cpu = bench.cpu(pids).since(before, moved)
    await bench.check_depth(queue, messages)
    return Sample(moved, seconds, cpu)


async def _at_least(bench: Bench, relays: Sequence[Program], queue: str, wanted: int, stall: float) -> int:
    """Wait until the queue holds so many; how many it holds then."""
    seen, since = -1, time.monotonic()
    while (depth := await bench.depth(queue)) < wanted:
        if depth != seen:
            seen, since = depth, time.monotonic()
        elif time.monotonic() - since > stall:
            raise CheckFailed(f"no message came for {stall:g} s, {depth} of {wanted} did\n{relays[0].said()}")
        for relay in relays:
            if relay.ended:
                raise CheckFailed(f"a relay ended\n{relay.said()}")
        await asyncio.sleep(LOOK_SECONDS)
    return depth
