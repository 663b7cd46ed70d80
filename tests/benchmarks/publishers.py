"""Publishers without an outbox: C, ours, and aio-pika. All send 1 KiB, persistent, mandatory, confirmed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
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
    return await _publish(bench, [BINARY, QUEUE, messages, WINDOW, BODY_BYTES], messages)


async def relmsg_publisher(bench: Bench, messages: int) -> Sample:
    """``Publisher.publish_many``."""
    return await _publish(bench, python("publish_relmsg", QUEUE, messages, BODY_BYTES), messages)


async def aio_pika_publisher(bench: Bench, messages: int) -> Sample:
    """``asyncio.gather`` over 1000 publishes at a time."""
    return await _publish(bench, python("publish_aio_pika", QUEUE, messages, BODY_BYTES), messages)


async def _publish(bench: Bench, command: Sequence[object], messages: int) -> Sample:
    await bench.fresh_queue(QUEUE)
    sample = await run_program(bench, command, messages)
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
