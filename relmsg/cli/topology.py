"""`relmsg topology`: exchanges, queues and bindings in the broker."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from relmsg.broker import declare as broker
from relmsg.cli import brief, options, output
from relmsg.cli.target import load_target
from relmsg.settings import Settings
from relmsg.topology import Topology

app = typer.Typer(no_args_is_help=True, help="Declare a topology in the broker, or compare it with what is there.")

Target = Annotated[str, typer.Argument(metavar="MODULE:TOPOLOGY", help="Where a Topology stands, as module:name.")]


@app.command()
def declare(target: Target, amqp_url: options.AmqpUrl = None, config: options.Config = None) -> None:
    """Declare what is missing. Doing it again changes nothing; what differs is an error and stays as it is."""
    settings = options.settings(amqp_url=amqp_url, config=config)
    topology = load_target(target, Topology)
    asyncio.run(_declare(settings, topology))
    whole = topology.whole()
    output.write(
        f"{target} is declared: exchanges {len(whole.exchanges)}, queues {len(whole.queues)}, "
        f"bindings {len(whole.bindings)}"
    )


@app.command()
def check(
    target: Target,
    amqp_url: options.AmqpUrl = None,
    management_url: options.ManagementUrl = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Compare with the broker: one line a difference, and exit code 1 if there is any. Changes nothing."""
    settings = options.settings(amqp_url=amqp_url, management_url=management_url, config=config)
    topology = load_target(target, Topology)
    differences = asyncio.run(_check(settings, topology))
    if json:
        output.emit([{"difference": line} for line in differences.lines], json, ["difference"])
    elif differences.lines:
        for line in differences.lines:
            output.write(output.printable(line))
    else:
        output.write(f"{target} is as it should be")
    sys.stdout.flush()
    for thing in differences.unchecked:
        output.complain(f"not checked, as this needs RELMSG_MANAGEMENT_URL: {thing}")
    if differences.lines:
        raise typer.Exit(1)


async def _declare(settings: Settings, topology: Topology) -> None:
    async with brief.connection(settings, "relmsg topology declare") as connection:
        await broker.declare(connection, topology)


async def _check(settings: Settings, topology: Topology) -> broker.Differences:
    async with brief.connection(settings, "relmsg topology check") as connection:
        return await broker.check(connection, topology, settings.management_url)
