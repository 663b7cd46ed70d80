"""`relmsg outbox redirect`, `park` and `drop`: what to do with messages whose destination leads nowhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from relmsg.broker.envelope import check_short
from relmsg.cli import brief, options, output, progress
from relmsg.errors import InvalidMessage, RelmsgError, UsageError
from relmsg.outbox.backlog import Backlog
from relmsg.outbox.changes import Changes, Chosen, Done

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Row ids or message ids, instead of --exchange.")
]
Exchange = Annotated[
    str | None,
    typer.Option("--exchange", show_default=False, help="Messages for this exchange; '' is the default exchange."),
]
RoutingKey = Annotated[
    str | None, typer.Option("--routing-key", show_default=False, help="Only those with this routing key.")
]
Type = Annotated[str | None, typer.Option("--type", show_default=False, help="Only this message type.")]
Parked = Annotated[
    bool | None,
    typer.Option("--parked/--waiting", show_default=False, help="Only those that are parked, or that wait."),
]

Act = Callable[[Changes, Chosen, Done], Awaitable[int]]


def redirect(
    ids: Ids = None,
    exchange: Exchange = None,
    routing_key: RoutingKey = None,
    type: Type = None,  # noqa: A002 - the flag's name
    parked: Parked = None,
    to_exchange: Annotated[
        str | None, typer.Option("--to-exchange", show_default=False, help="The new exchange; default: as it is.")
    ] = None,
    to_routing_key: Annotated[
        str | None, typer.Option("--to-routing-key", show_default=False, help="The new routing key; default: as it is.")
    ] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Send messages to another destination than they were published to. They keep their ids and their order.

    A running relay finds them within seconds. What is parked stays parked. Exit code 1 if there is
    none to redirect; a dry run only tells how many.
    """
    if to_exchange is None and to_routing_key is None:
        raise UsageError("say where to: --to-exchange, --to-routing-key, or both")
    if (exchange, routing_key) == (to_exchange, to_routing_key):
        raise UsageError("they go there already: give another destination")
    for name, value in (("exchange", to_exchange), ("routing_key", to_routing_key)):
        try:
            check_short(name, value or "")
        except InvalidMessage as error:
            raise UsageError(f"the new {error}") from error
    chosen = _chosen(ids, exchange, routing_key, type, parked)

    def act(changes: Changes, chosen: Chosen, done: Done) -> Awaitable[int]:
        return changes.redirect(chosen, exchange=to_exchange, routing_key=to_routing_key, done=done)

    flags = {"database_url": database_url, "schema": schema, "config": config}
    _change("redirected", chosen, act, dry_run=dry_run, yes=yes, json=json, **flags)


def park(
    ids: Ids = None,
    exchange: Exchange = None,
    routing_key: RoutingKey = None,
    type: Type = None,  # noqa: A002 - the flag's name
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Told by `list` and `show`.")
    ] = "parked by an operator",
    dry_run: options.DryRun = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Set waiting messages aside, until `relmsg outbox retry` brings them back. Exit code 1 if there is none."""
    chosen = _chosen(ids, exchange, routing_key, type, parked=False)

    def act(changes: Changes, chosen: Chosen, done: Done) -> Awaitable[int]:
        return changes.park(chosen, reason, done)

    flags = {"database_url": database_url, "schema": schema, "config": config}
    _change("parked", chosen, act, dry_run=dry_run, yes=True, json=json, **flags)


def drop(
    ids: Ids = None,
    exchange: Exchange = None,
    routing_key: RoutingKey = None,
    type: Type = None,  # noqa: A002 - the flag's name
    parked: Parked = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Delete messages that are never to be sent, waiting ones and parked ones. Exit code 1 if there is none."""
    chosen = _chosen(ids, exchange, routing_key, type, parked)
    flags = {"database_url": database_url, "schema": schema, "config": config}
    _change("dropped", chosen, Changes.drop, dry_run=dry_run, yes=yes, json=json, **flags)


def _chosen(
    ids: list[str] | None, exchange: str | None, routing_key: str | None, type_: str | None, parked: bool | None
) -> Chosen:
    """The rows that are meant.

    :raises UsageError: neither ids nor a destination were given, or both: all of the outbox is never meant.
    """
    if bool(ids) == (exchange is not None):
        raise UsageError("name the messages, or give their destination: --exchange, perhaps --routing-key")
    if ids and routing_key is not None:
        raise UsageError("--routing-key goes with --exchange")
    return Chosen(names=ids or (), exchange=exchange, routing_key=routing_key, message_type=type_, parked=parked)


def _change(verb: str, chosen: Chosen, act: Act, *, dry_run: bool, yes: bool, json: bool, **flags: str | None) -> None:
    """Tell how many are meant, ask, and do it; what was done is told also where it ends half way."""
    settings = options.settings(**flags)
    if not yes and not dry_run and not sys.stdin.isatty():
        raise UsageError("nobody can be asked without a terminal: give --yes, or --dry-run to see how many are meant")
    changed = 0

    async def ask(changes: Changes) -> None:
        matching = await changes.count(chosen)
        if dry_run or not matching:
            _tell(verb, matching, 0, dry_run=dry_run, json=json)
        elif not yes and not await asyncio.to_thread(_agreed, verb, matching):
            output.complain("nothing was done")
        else:
            try:
                with progress.bar(json=json) as bar:
                    watch = bar.counter(verb, matching)

                    def done(count: int) -> None:
                        nonlocal changed
                        changed += count
                        watch(count)

                    await act(changes, chosen, done)
            finally:
                _tell(verb, matching, changed, dry_run=False, json=json)
        if not matching and not dry_run:  # a dry run was asked how many there are, and none is an answer
            raise RelmsgError("no message matches: see `relmsg outbox list`")

    brief.asked(settings, lambda engine: ask(Backlog(engine, schema=settings.schema).changes))


def _agreed(verb: str, matching: int) -> bool:
    return typer.confirm(f"{matching} messages are to be {verb}. Go on?", err=True)


def _tell(verb: str, matching: int, changed: int, *, dry_run: bool, json: bool) -> None:
    if json:
        told: dict[str, Any] = {"dry_run": dry_run, "matching": matching, verb: changed}
        output.write(output.as_json(told))
    elif dry_run:
        output.write(f"{matching} messages would be {verb}")
    else:
        output.write(f"{verb} {changed} of {matching} messages")
