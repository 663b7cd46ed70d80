"""The flags that many verbs share, and the settings they lead to."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from relmsg.settings import DEFAULT_PROBES, Settings

# Not refused, but said: a password on the command line can be read in the process list by every user of the machine.
_BETTER = "better given as {}: a command line can be read by every user of the machine"

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        show_default=False,
        help="postgresql+asyncpg://user:password@host/database; " + _BETTER.format("RELMSG_DATABASE_URL"),
    ),
]
AmqpUrl = Annotated[
    str | None,
    typer.Option(
        "--amqp-url",
        metavar="URL",
        show_default=False,
        help="amqp://user:password@host1,host2/vhost; " + _BETTER.format("RELMSG_AMQP_URL"),
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema", metavar="NAME", show_default=False, help="The schema of relmsg's tables; default: relmsg."
    ),
]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", show_default=False, help="A TOML file of settings, also RELMSG_CONFIG."),
]
ProbesAddress = Annotated[
    str | None,
    typer.Option(
        "--probes",
        metavar="HOST:PORT",
        show_default=False,
        help=f"Where /live, /ready and /metrics answer; default {DEFAULT_PROBES}, or any free port if that is taken; "
        "port 0 takes any, '' turns them off.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON array of objects.")]


def settings(**flags: Any) -> Settings:
    """The settings in force, from file, environment and these flags by the settings' names; None means not given.

    :raises SettingsError: that names every mistake.
    """
    return Settings.load(flags)
