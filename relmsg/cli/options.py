"""The flags that many verbs share, and the settings they lead to."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from relmsg.settings import DEFAULT_PROBES, LOG_FORMATS, LOG_LEVELS, Settings

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
LogLevel = Annotated[
    str | None,
    typer.Option("--log-level", metavar="LEVEL", show_default=False, help=f"{', '.join(LOG_LEVELS)}; default: info."),
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format", metavar="FORMAT", show_default=False, help=f"{' or '.join(LOG_FORMATS)}; default: text."
    ),
]
ManagementUrl = Annotated[
    str | None,
    typer.Option(
        "--management-url",
        metavar="URL",
        show_default=False,
        help="http://user:password@host:15672; " + _BETTER.format("RELMSG_MANAGEMENT_URL"),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON array of objects.")]
Wide = Annotated[
    bool, typer.Option("--wide", help="On a terminal: every column, nothing cut, however long the lines become.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell how many.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


before_the_verb: dict[str, Any] = {}


def settings(**flags: Any) -> Settings:
    """The settings in force, from file, environment and these flags by the settings' names; None means not given.
    Behind them stand the flags that were given before the verb.

    :raises SettingsError: that names every mistake.
    """
    return Settings.load(before_the_verb | {name: value for name, value in flags.items() if value is not None})
