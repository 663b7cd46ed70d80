"""Telling a person how far the start has come."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Report = Callable[[str], None]


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Steps on stderr: a spinner on a terminal if rich is installed, otherwise a line each."""
    status = None
    if sys.stdout.isatty() and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console

            status = Console(stderr=True).status("looking for PostgreSQL and RabbitMQ")
    if status is None:
        yield lambda step: print(f"local: {step}", file=sys.stderr, flush=True)
        return
    with status:
        yield lambda step: status.update(step)
