"""`relmsg inbox`: what consumers remember of the messages they handled, and forgetting what is old."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer

from relmsg.cli import brief, options, output, progress
from relmsg.errors import RelmsgError, UsageError
from relmsg.inbox.memory import Memory

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="See what consumers remember, and have them forget what is old.")

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
COLUMNS = ("consumer", "messages", "oldest", "newest", "keeps", "pruned_before", "pruned_at")


def _age(text: str) -> timedelta:
    """A number with its unit, such as 30d."""
    if not (age := re.fullmatch(r"(\d{1,6})([smhd])", text)) or not int(age[1]):
        raise typer.BadParameter(f"{text!r} is not an age like 12h, 30d")
    return timedelta(**{UNITS[age[2]]: int(age[1])})


@app.command()
def status(
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """How many messages each consumer remembers, since when, for how long, and what it has forgotten."""
    rows = _with_memory(Memory.status, database_url=database_url, schema=schema, config=config)
    if not json:
        for row in rows:
            row["keeps"] = _keeps(row["keeps_seconds"])
            row["messages"] = f"{'' if row['exact'] else 'about '}{row['messages']:,}"
    output.emit(rows, json, COLUMNS)


@app.command()
def prune(
    consumer: Annotated[
        str | None, typer.Option("--consumer", metavar="NAME", show_default=False, help="Only of this consumer.")
    ] = None,
    older_than: Annotated[
        timedelta | None,
        typer.Option(
            parser=_age, metavar="AGE", show_default=False, help="Not by the dedup windows, but older than 12h, 90d."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell how many.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Forget messages that were handled longer ago than the consumer's dedup window. Consumers do so by themselves.

    A forgotten message is handled again if it is delivered, requeued or replayed.
    """
    flags = {"database_url": database_url, "schema": schema, "config": config}
    found = _with_memory(lambda memory: memory.due(consumer, older_than), **flags)
    due = sum(rows for rows, _ in found.values())
    if older_than is not None and due and not dry_run and not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked without a terminal: give --yes, or --dry-run to see how many")
        if not typer.confirm(f"Forget {due} messages?", err=True):
            output.write("nothing was done")
            return
    forgotten = _prune(found, due, flags, json=json) if due and not dry_run else {}
    rows: list[dict[str, Any]] = [
        {"consumer": name, "before": before, "due": count, "forgotten": forgotten.get(name, 0)}
        for name, (count, before) in found.items()
    ]
    if json:
        output.emit(rows, json, ())
        return
    for row in rows:
        done = f"would forget {row['due']}" if dry_run else f"forgot {row['forgotten']}"
        before = row["before"].astimezone(UTC).isoformat(sep=" ", timespec="seconds")
        output.write(output.printable(f"{row['consumer']}: {done} messages handled before {before}"))
    if not rows:
        output.write("no consumer forgets anything")


def _prune(found: dict[str, tuple[int, datetime]], due: int, flags: dict[str, Any], *, json: bool) -> dict[str, int]:
    forgotten: dict[str, int] = {}
    with progress.bar(json=json) as bar:

        def told(earlier: int) -> Callable[[int], None]:
            return lambda rows: bar.tell("forgetting", min(1.0, (earlier + rows) / due))

        async def forget(memory: Memory) -> None:
            problems = []
            for name, (count, before) in found.items():
                if count:
                    try:
                        forgotten[name] = await memory.prune(name, before, told(sum(forgotten.values())))
                    except RelmsgError as error:  # of one consumer: the others forget all the same
                        problems.append(error)
            if problems:
                raise problems[0]

        _with_memory(forget, **flags)
    return forgotten


def _keeps(seconds: float | None) -> str:
    if seconds is None:
        return "for ever"
    days = seconds / 86_400
    return f"{days:g} days" if days >= 1 else f"{seconds / 3600:g} hours"


def _with_memory(ask: Callable[[Memory], Awaitable[T]], **flags: Any) -> T:
    settings = options.settings(**flags)
    return brief.asked(settings, lambda engine: ask(Memory(engine, settings.schema)))
