"""`relmsg consume module:inbox`: the worker that runs an inbox's handlers."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

import typer

from relmsg.cli import options, output
from relmsg.cli.process import run_until_stopped
from relmsg.cli.target import load_target
from relmsg.inbox.inbox import Inbox
from relmsg.probes import Probes
from relmsg.runtime.background import Background
from relmsg.settings import Settings

log = logging.getLogger(__name__)

MINUTE = 60.0

Target = Annotated[
    str, typer.Argument(metavar="MODULE:INBOX", help="Where the Inbox is, such as billing.handlers:inbox.")
]
Prefetch = Annotated[
    int | None,
    typer.Option(
        "--prefetch",
        metavar="N",
        show_default=False,
        help="Messages taken ahead of the acks, for each queue. By default 250, or 1000 with a list handler, or more "
        "with larger groups.",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", metavar="N", show_default=False, help="Handlers at a time, for all queues."),
]
Drain = Annotated[
    float | None,
    typer.Option("--drain", metavar="SECONDS", show_default=False, help="For running handlers, when told to stop."),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(name="consume")(consume)


def consume(
    target: Target,
    amqp_url: options.AmqpUrl = None,
    config: options.Config = None,
    prefetch: Prefetch = None,
    concurrency: Concurrency = None,
    drain: Drain = None,
    probes: options.ProbesAddress = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
) -> None:
    """Run an inbox's handlers until SIGTERM or Ctrl-C; then finish what runs, commit, ack and leave.

    The module is imported from the current directory. The database is the one its Inbox was made with. Prefetch,
    concurrency, drain and limits win over what the module says, where they are set here or in the environment.
    """
    settings = options.settings(
        amqp_url=amqp_url,
        config=config,
        prefetch=prefetch,
        concurrency=concurrency,
        consumer_drain=drain,
        probes=probes,
        log_level=log_level,
        log_format=log_format,
    )
    if settings.config is not None:
        os.environ["RELMSG_CONFIG"] = settings.config  # the module's Inbox and Outbox take their schema from there too
    inbox = load_target(target, Inbox)
    if inbox.amqp_url is None:
        settings.broker()
    run_until_stopped(lambda stop: _consume(inbox, settings, stop), settings)


async def _consume(inbox: Inbox, settings: Settings, stop: asyncio.Event) -> None:
    for name in inbox.limits._fields:
        if (limit := _changed(settings, f"consumer_max_{name}")) is not None:
            inbox.limits = inbox.limits._replace(**{name: limit})
    telling = Background(f"inbox {inbox.name}: counts of each minute", partial(_tell_each_minute, inbox))
    async with AsyncExitStack() as stack:
        telling.start()
        stack.push_async_callback(telling.stop)
        probes = Probes(settings.probes, inbox.metrics.registry, live=inbox.live, ready=inbox.ready)
        stack.enter_context(probes)
        where = f", probes on port {probes.port}" if probes.port is not None else ""
        await inbox.run(
            settings.broker_url if settings.amqp_url_file or settings.amqp_url else None,
            stop,
            started=lambda: output.write(f"consuming {', '.join(inbox.queues)} as {inbox.name}{where}"),
            prefetch=settings.prefetch,
            concurrency=_changed(settings, "concurrency"),
            drain=_changed(settings, "consumer_drain"),
            heartbeat=_changed(settings, "heartbeat"),
        )
    output.write("consumer stopped")


async def _tell_each_minute(inbox: Inbox) -> None:
    """Log what came of the messages of each minute that had any."""
    before = inbox.metrics.outcomes()
    while True:
        await asyncio.sleep(MINUTE)
        now = inbox.metrics.outcomes()
        counted = [f"{outcome} {now[outcome] - before.get(outcome, 0):,}" for outcome in sorted(now)]
        if now != before:
            log.info("%s: in the last minute %s", inbox.name, ", ".join(counted))
        before = now


def _changed(settings: Settings, name: str) -> int | None:
    """A setting that is not at its default; otherwise what the module says holds."""
    value: int = getattr(settings, name)
    return None if value == getattr(Settings(), name) else value
