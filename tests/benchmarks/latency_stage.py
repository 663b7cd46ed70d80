"""One run of a path from COMMIT to the consumer, from an empty outbox and an empty queue."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.benchmarks import outbox
from tests.benchmarks.bench import Bench
from tests.benchmarks.contenders.publishing_order import TABLE
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.outbox import QUEUE
from tests.benchmarks.program import Program, python, run_program

START_SECONDS = 30.0


async def path(
    bench: Bench, messages: int, *, program: str, every: float, how: str | None = None, sidecar: bool = False
) -> Sample:
    """Send so many messages, one ``every`` so many seconds. The program itself fails if one does not arrive.

    ``sidecar``: beside `relmsg relay` as it is deployed, whose CPU is not in the sample.
    """
    await bench.database.execute(TABLE)
    await outbox.clean(bench)
    await bench.settled(outbox.TABLE, "placed_order")
    async with AsyncExitStack() as stack:
        if sidecar:
            relay = await stack.enter_async_context(Program(outbox.relay_command(), bench.environment))
            if not (line := await relay.line(START_SECONDS)).startswith("relaying"):
                raise CheckFailed(f"relmsg relay said {line!r}")
        command = python(program, QUEUE, messages, every, *([how] if how else []))
        return await run_program(bench, command, messages)
