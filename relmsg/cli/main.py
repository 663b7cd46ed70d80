"""The entry of the command `relmsg`: its groups of verbs, and what becomes of an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any

import typer

from relmsg import failpoint
from relmsg.cli import bench, consume, database, errors, half, inbox, options, outbox, output, relay, topology
from relmsg.cli.escape import escaped_trace
from relmsg.db.failures import translate
from relmsg.errors import RelmsgError
from relmsg.exceptions import text_of, trace_of, type_name
from relmsg.settings import redact

# A group of verbs: `relmsg db check`. Its module has an `app`.
GROUPS: tuple[tuple[str, typer.Typer], ...] = (
    ("db", database.app),
    ("outbox", outbox.app),
    ("inbox", inbox.app),
    ("half", half.app),
    ("errors", errors.app),
    ("topology", topology.app),
)
# A single verb: `relmsg relay`. Its module has a `register(app)`.
VERBS: tuple[Callable[[typer.Typer], None], ...] = (relay.register, consume.register, bench.register)

# Click's ClickException: older Typers take it from click, newer ones from a copy of their own; both export this child.
ClickException: Any = typer.BadParameter.__mro__[2]


def _version(asked: bool) -> None:
    if asked:
        output.write(f"relmsg {version('relmsg')}")
        raise typer.Exit


def build() -> typer.Typer:
    """The Typer application with all its verbs."""
    app = typer.Typer(name="relmsg", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.callback()
    def relmsg(
        context: typer.Context,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
        log_level: options.LogLevel = None,
        log_format: options.LogFormat = None,
        _: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
        ] = False,
    ) -> None:
        """Reliable messaging on RabbitMQ and PostgreSQL.

        Exit codes: 0 done, 1 something is wrong with the messages or tables, 2 wrong use, 3 a service is away.
        """
        context.obj["debug"] = debug
        options.before_the_verb = {"log_level": log_level, "log_format": log_format}

    for name, group in GROUPS:
        app.add_typer(group, name=name)
    for register in VERBS:
        register(app)
    return app


@cache
def _command() -> Any:
    return typer.main.get_command(build())


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are one line on stderr, never a traceback."""
    state: dict[str, Any] = {"debug": False}
    try:
        failpoint.arm()
        code = _command().main(list(arguments), prog_name="relmsg", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ClickException as error:
        return _misused(error)
    except Exception as error:  # noqa: BLE001 the last resort of the whole program
        return _failed(error, debug=state["debug"])


def _misused(error: Any) -> int:
    message = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help
        sys.stderr.write(message.rstrip() + "\n")
    else:
        context = getattr(error, "ctx", None)
        where = f"; see {context.command_path} --help" if context is not None else ""
        output.complain(message.rstrip(".") + where)
    return int(error.exit_code)


def _failed(error: Exception, *, debug: bool) -> int:
    known = error if isinstance(error, RelmsgError) else translate(error)
    if known is not None:
        output.complain(redact(str(known)))
        return known.exit_code
    if debug:
        sys.stderr.write(escaped_trace(redact(trace_of(error))) + "\n")
    output.complain(
        f"unexpected {type_name(error)}: {redact(text_of(error))} (a fault of relmsg, please report it; "
        "`relmsg --debug …` shows where)"
    )
    return 1


if __name__ == "__main__":
    main()
