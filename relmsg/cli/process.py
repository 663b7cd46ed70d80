"""What the long-running verbs share: their log, and a stop that signals set."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from relmsg.cli.logs import leave_out_amqp_library, log_to_stderr
from relmsg.settings import Settings

log = logging.getLogger("relmsg")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_stopped(main: Callable[[asyncio.Event], Awaitable[None]], settings: Settings) -> None:
    """Run ``main`` with a stop event that SIGTERM and SIGINT set; a second one of them ends the process at once."""
    log_to_stderr(settings.log_level, settings.log_format)

    async def run() -> None:
        leave_out_amqp_library(asyncio.get_running_loop())
        with _stop_on_signals() as stop:
            await main(stop)

    asyncio.run(run())


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """Not by ``loop.add_signal_handler``: the second signal has to work where a handler blocks the event loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked = True
        loop.call_soon_threadsafe(_begin, stop)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(stop: asyncio.Event) -> None:
    if not stop.is_set():
        log.info("stopping as soon as what runs is done; a second signal ends this process at once")
        stop.set()
