"""`relmsg outbox`: what waits in the outbox, what is parked, and bringing that back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from relmsg.cli import brief, dedup_windows, options, outbox_changes, output, progress
from relmsg.errors import RelmsgError, UsageError
from relmsg.outbox.backlog import MOST_DESTINATIONS, Backlog
from relmsg.outbox.changes import Chosen, Done

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="See what waits in the outbox; retry, redirect, park or drop it.")
for _verb in (outbox_changes.redirect, outbox_changes.park, outbox_changes.drop):
    app.command()(_verb)

Exchange = Annotated[str | None, typer.Option("--exchange", show_default=False, help="Only this exchange.")]
Type = Annotated[str | None, typer.Option("--type", show_default=False, help="Only this message type.")]
COLUMNS = ("id", "message_id", "type", "exchange", "routing_key", "ordering_key", "state", "attempts", "last_error")


@app.command()
def status(
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Name at most so many held destinations; all are counted.")
    ] = MOST_DESTINATIONS,
    wide: options.Wide = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """How much waits and how long, which destinations are held and why, what is parked, which relays are alive."""

    def ask(backlog: Backlog) -> Any:
        return backlog.status(destinations=limit)

    found = _with_backlog(ask, database_url=database_url, schema=schema, config=config)
    if json:
        output.write(output.as_json(found))
        return
    output.write(f"waiting  {found['waiting']}, the oldest for {found['oldest_seconds']:.1f} s")
    output.write(f"parked   {found['parked']}" + (", see `relmsg outbox list --parked`" if found["parked"] else ""))
    for held in found["held"]:
        where = f"exchange {held['exchange']!r}"
        if held["routing_key"] is not None:
            where += f", routing key {held['routing_key']!r}"
        output.entry(f"held     {held['messages']} for {where}: {held['reason']}", wide=wide)
    if more := found["held_destinations"] - len(found["held"]):
        rest = found["held_messages"] - sum(each["messages"] for each in found["held"])
        output.write(
            f"held     and {more} more destinations with {rest} messages, in all {found['held_destinations']} with "
            f"{found['held_messages']}: see --limit"
        )
    for relay in found["relays"]:
        output.entry(f"relay    {relay['relay']} with {relay['slots']} slots", wide=wide)
    if not found["relays"]:
        output.write("relay    none is running: start `relmsg relay`")


@app.command(name="list")
def list_(
    parked: Annotated[bool | None, typer.Option("--parked/--waiting", show_default=False, help="Only these.")] = None,
    exchange: Exchange = None,
    type: Type = None,  # noqa: A002 - the flag's name
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    wide: options.Wide = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """The oldest messages that wait or are parked."""

    def ask(backlog: Backlog) -> Any:
        return backlog.rows(parked=parked, exchange=exchange, message_type=type, limit=limit)

    rows = _with_backlog(ask, database_url=database_url, schema=schema, config=config)
    output.emit(rows, json, COLUMNS, wide=wide, brief=_brief)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A row id or a message id.")],
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Everything about one message: properties, headers, body, reason. Exit code 1 if it is not in the outbox."""
    rows = _with_backlog(lambda backlog: backlog.show(name), database_url=database_url, schema=schema, config=config)
    if not rows:
        raise RelmsgError(f"no message {name} is in the outbox: it was sent, or its transaction was rolled back")
    shown = [{**row, "body": output.text(row["body"])} for row in rows]
    if json:
        output.emit(shown, json, COLUMNS)
        return
    for row in shown:
        for column, value in row.items():
            output.write(f"{column:<17}{output.cell(value)}".rstrip())


@app.command()
def retry(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Row ids or message ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are parked (and match the filters).")] = False,
    exchange: Exchange = None,
    type: Type = None,  # noqa: A002 - the flag's name
    dry_run: options.DryRun = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Bring parked messages back to the relay, under the same message ids. Exit code 1 if none of them is parked.

    Messages that are older than a consumer in this database remembers are told: what was handled and forgotten takes
    effect once more.
    """
    if bool(names) == every:
        raise UsageError("name the messages to bring back, or give --all")

    async def act(backlog: Backlog) -> int:
        async def run(done: Done, dry_run: bool) -> int:
            return await backlog.retry(
                names or (), every=every, exchange=exchange, message_type=type, dry_run=dry_run, done=done
            )

        total = await run(lambda _: None, dry_run=True)
        chosen = Chosen(names=names or (), exchange=exchange, message_type=type, parked=True)
        await dedup_windows.warn_of_rows(backlog, chosen)
        if dry_run:
            return total
        with progress.bar(json=json) as bar:
            return await run(bar.counter("brought back", total), dry_run=False)

    count = _with_backlog(act, database_url=database_url, schema=schema, config=config)
    if json:
        output.write(output.as_json({"dry_run": dry_run, "messages": count}))
    else:
        output.write(f"{count} messages {'would come' if dry_run else 'came'} back")
    if names and not count:
        raise RelmsgError("none of these is parked: see `relmsg outbox list --parked`")


def _brief(row: Mapping[str, Any]) -> dict[str, object]:
    """The columns for a terminal: which message, since when, where to, and why it is still here."""
    where = f"{row['exchange'] or '(default)'} {row['routing_key']}"
    return {
        "message_id": row["message_id"],
        "age": output.age(row["created_at"]),
        "state": row["state"],
        "destination": where,
        "last_error": row["last_error"],
        "type": row["type"],
    }


def _with_backlog(ask: Callable[[Backlog], Awaitable[T]], **flags: Any) -> T:
    settings = options.settings(**flags)
    return brief.asked(settings, lambda engine: ask(Backlog(engine, schema=settings.schema)))
