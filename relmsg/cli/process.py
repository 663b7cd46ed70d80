"""What the long-running verbs share: logging, and a stop that signals set."""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import sys


def log_to_stderr() -> None:
    """Log one line an event to stderr. The AMQP library's own lines are left out: at DEBUG it logs bodies, and its
    warnings say in tracebacks what relmsg says in a sentence. Lines on stdout leave at once as well: a pipe or a file
    would otherwise get them when the process ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    for library in ("aiormq", "aio_pika", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; a second one of them ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ask)
    return stop
