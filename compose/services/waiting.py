"""Waiting for a process that starts: until it answers, ends, takes too long, or a signal calls the start off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from compose.services.errors import Interrupted, ServicesError
from compose.services.processes import Process, alive, exit_code

START_SECONDS = 90.0


class Cancellation:
    """Whether a start was called off. A signal handler only sets it, so that no step is cut in the middle."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def check(self) -> None:
        """:raises Interrupted: once a signal has called the start off."""
        if self.signum is not None:
            raise Interrupted(self.signum)


def until_answering(
    name: str,
    process: Process,
    answers: Callable[[], bool],
    log: Path,
    cancellation: Cancellation,
    seconds: float = START_SECONDS,
) -> None:
    """:raises ServicesError: with the end of the log, if the process ends first or does not answer in time."""
    deadline = time.monotonic() + seconds
    while not answers():
        cancellation.check()
        if not alive(process):
            raise ServicesError(f"{name} ended while starting; {_tail(log)}")
        if time.monotonic() > deadline:
            raise ServicesError(f"{name} does not answer after {seconds:g} s; {_tail(log)}")
        time.sleep(0.05)


def until_done(
    name: str, process: Process, log: Path, cancellation: Cancellation, seconds: float = START_SECONDS
) -> None:
    """:raises ServicesError: with the end of the log, if the child fails or is not done in time."""
    deadline = time.monotonic() + seconds
    while (code := exit_code(process)) is None:
        cancellation.check()
        if time.monotonic() > deadline:
            raise ServicesError(f"{name} is not done after {seconds:g} s; {_tail(log)}")
        time.sleep(0.02)
    if code != 0:
        raise ServicesError(f"{name} failed; {_tail(log)}")


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))  # RabbitMQ colours its console log
        end = text.splitlines()[-lines:]
    except OSError:
        end = []
    return f"{log} ends with:\n  " + "\n  ".join(end) if end else f"{log} is empty"
