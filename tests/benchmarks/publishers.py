"""Publishers without an outbox: C, ours, and aio-pika. All send 1 KiB, persistent, mandatory, confirmed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.outbox import BODY_BYTES, QUEUE
from tests.benchmarks.program import ROOT, python, run_program

SOURCE = Path(__file__).with_name("publisher.c")
BINARY = ROOT / ".local" / "benchmark-publisher"
WINDOW = 1000


async def c_publisher(bench: Bench, messages: int) -> Sample:
    """librabbitmq. :raises CheckFailed: if it cannot be built here."""
    await asyncio.to_thread(build)
    await bench.fresh_queue(QUEUE)
    sample = await run_program(bench, [BINARY, QUEUE, messages, WINDOW, BODY_BYTES], messages)
    await bench.check_depth(QUEUE, messages)
    return sample


async def relmsg_publisher(bench: Bench, messages: int) -> Sample:
    """``Publisher.publish_many``."""
    await bench.fresh_queue(QUEUE)
    sample = await run_program(bench, python("publish_relmsg", QUEUE, messages, BODY_BYTES), messages)
    await bench.check_depth(QUEUE, messages)
    return sample


async def aio_pika_publisher(bench: Bench, messages: int) -> Sample:
    """``asyncio.gather`` over 1000 publishes at a time."""
    await bench.fresh_queue(QUEUE)
    sample = await run_program(bench, python("publish_aio_pika", QUEUE, messages, BODY_BYTES), messages)
    await bench.check_depth(QUEUE, messages)
    return sample


def build() -> None:
    """Compile the C publisher, once. :raises CheckFailed: without a compiler or librabbitmq's headers."""
    if BINARY.exists() and BINARY.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CheckFailed("no C compiler here (Debian: apt-get install gcc libc6-dev librabbitmq-dev)")
    BINARY.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(BINARY), str(SOURCE), "-lrabbitmq"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        why = done.stderr.strip().partition("\n")[0]
        raise CheckFailed(f"the C publisher was not built (Debian: apt-get install librabbitmq-dev): {why}")
