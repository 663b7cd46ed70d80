"""`relmsg relay`: the sidecar that moves committed messages to the broker, and coordinates half messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from relmsg.cli import options, output
from relmsg.cli.process import run_until_stopped
from relmsg.half.coordinator import Coordinator
from relmsg.half.metrics import CoordinatorMetrics
from relmsg.outbox.relay import Relay
from relmsg.probes import Probes
from relmsg.settings import Settings

Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", show_default=False, help="What to call this relay in status and logs."),
]

WithCoordinator = Annotated[
    bool | None,
    typer.Option(
        "--coordinator/--no-coordinator", show_default=False, help="Coordinate half messages as well; default: yes."
    ),
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
    coordinator: WithCoordinator = None,
    probes: options.ProbesAddress = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
) -> None:
    """Move committed messages to the broker, and coordinate half messages, until SIGTERM or Ctrl-C; then settle what is
    in flight and leave."""
    settings = options.settings(
        database_url=database_url,
        amqp_url=amqp_url,
        schema=schema,
        config=config,
        relay_name=name,
        coordinator=coordinator,
        probes=probes,
        log_level=log_level,
        log_format=log_format,
    )
    settings.database()
    settings.broker()
    run_until_stopped(lambda stop: _relay(settings, stop), settings)


async def _relay(settings: Settings, stop: asyncio.Event) -> None:
    relay = Relay(settings)
    parts: list[Relay | Coordinator] = [relay]
    if settings.coordinator:
        metrics = CoordinatorMetrics(relay.metrics.registry)
        parts.append(Coordinator(settings, metrics=metrics, committed=relay.wake))

    def live() -> str | None:
        return "; ".join(filter(None, (part.live() for part in parts))) or None

    def ready() -> str | None:
        return "; ".join(filter(None, (part.ready() for part in parts))) or None

    with Probes(settings.probes, relay.metrics.registry, live=live, ready=ready) as probes:
        started = asyncio.create_task(_say_when_ready(parts, settings, probes))
        running = [asyncio.create_task(part.run(stop)) for part in parts]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
            stop.set()  # one cannot do without the other: either both run, or the process ends and says why
            await asyncio.gather(*running, return_exceptions=True)
        for part in running:
            part.result()
    output.write("relay stopped")


async def _say_when_ready(parts: Sequence[Relay | Coordinator], settings: Settings, probes: Probes) -> None:
    for part in parts:
        await part.started.wait()
    where = f", probes on port {probes.port}" if probes.port is not None else ""
    output.write(f"relaying schema {settings.schema} as {settings.relay_name}{where}")
