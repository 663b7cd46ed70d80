"""Publishers without an outbox: C, ours, and aio-pika. All send 1 KiB, persistent, mandatory, confirmed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

from compose.local import ServicesError
from compose.services.installing import install
from tests.benchmarks.bench import Bench
from tests.benchmarks.model import CheckFailed, Sample
from tests.benchmarks.outbox import BODY_BYTES, QUEUE
from tests.benchmarks.program import ROOT, python, run_program

SOURCE = Path(__file__).with_name("publisher.c")
BINARY = ROOT / ".local" / "benchmark-publisher"
NEEDED = ("gcc", "libc6-dev", "librabbitmq-dev")
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
    """Compile the C publisher, once; as root on Debian librabbitmq's headers are installed first.

    :raises CheckFailed: without them, or without a compiler.
    """
    if BINARY.exists() and BINARY.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    BINARY.parent.mkdir(exist_ok=True)
    if (why := _compile()) and os.geteuid() == 0 and shutil.which("apt-get"):
        try:
            install(NEEDED, lambda line: print(line, file=sys.stderr, flush=True))
        except ServicesError as error:
            raise CheckFailed(f"the C publisher was not built: {error}") from error
        why = _compile()
    if why:
        raise CheckFailed(f"the C publisher was not built (Debian: apt-get install {' '.join(NEEDED)}): {why}")


def _compile() -> str | None:
    """None, or why it did not compile."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "no C compiler"
    done = subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(BINARY), str(SOURCE), "-lrabbitmq"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr.strip().partition("\n")[0] if done.returncode else None
