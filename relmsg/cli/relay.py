"""`relmsg relay`: the sidecar that moves committed messages to the broker."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from relmsg.cli import options, output
from relmsg.cli.process import log_to_stderr, stop_on_signals
from relmsg.outbox.relay import Relay
from relmsg.probes import Probes
from relmsg.settings import Settings

Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", show_default=False, help="What to call this relay in status and logs."),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(name="relay")(relay)


def relay(
    database_url: options.DatabaseUrl = None,
    amqp_url: options.AmqpUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    name: Name = None,
    probes: options.ProbesAddress = None,
) -> None:
    """Move committed messages to the broker until SIGTERM or Ctrl-C; then settle what is in flight and leave."""
    settings = options.settings(
        database_url=database_url, amqp_url=amqp_url, schema=schema, config=config, relay_name=name, probes=probes
    )
    settings.database()
    settings.broker()
    log_to_stderr()
    asyncio.run(_relay(settings))


async def _relay(settings: Settings) -> None:
    stop = stop_on_signals()
    relay = Relay(settings)
    with Probes(settings.probes, relay.metrics.registry, live=relay.live, ready=relay.ready) as probes:
        started = asyncio.create_task(_say_when_ready(relay, settings, probes))
        try:
            await relay.run(stop)
        finally:
            started.cancel()
    output.write("relay stopped")


async def _say_when_ready(relay: Relay, settings: Settings, probes: Probes) -> None:
    await relay.started.wait()
    where = f", probes on port {probes.port}" if probes.port is not None else ""
    output.write(f"relaying schema {settings.schema} as {settings.relay_name}{where}")
