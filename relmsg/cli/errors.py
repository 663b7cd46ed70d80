"""`relmsg errors`: see the messages that could not be handled, send them again, or remove them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from relmsg.broker.error_entry import ErrorEntry, ErrorFilter
from relmsg.broker.error_headers import ORIGINAL_USER_ID
from relmsg.broker.error_queue import ErrorQueue, Stayed
from relmsg.broker.error_queues import ErrorQueueCount, error_queues
from relmsg.cli import brief, dedup_windows, error_rows, options, output, progress
from relmsg.cli.error_rows import COLUMNS, row_of
from relmsg.errors import RelmsgError, UsageError
from relmsg.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See the messages that could not be handled; send them again.")

QUEUE_COLUMNS = ("error_queue", "messages")
AGES = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _moment(text: str) -> datetime:
    """ISO 8601, in UTC where it names no zone, or an age, such as 2h."""
    try:
        if age := re.fullmatch(r"(\d{1,6})([smhd])", text):
            return datetime.now(UTC) - timedelta(**{AGES[age[2]]: int(age[1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is neither like 2026-01-31T12:00 nor like 30m, 2h, 7d") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


Queue = Annotated[str, typer.Option("--queue", metavar="QUEUE", help="The queue that was consumed, or QUEUE.errors.")]
AnyQueue = Annotated[
    str | None,
    typer.Option(
        "--queue",
        metavar="QUEUE",
        show_default=False,
        help="The queue that was consumed, or QUEUE.errors; without it all error queues are counted.",
    ),
]
Exception_ = Annotated[
    str | None, typer.Option("--exception", metavar="CLASS", help="The exception's class, also without its module.")
]
Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="The message type.")]
Since = Annotated[
    datetime | None,
    typer.Option(parser=_moment, metavar="TIME", help="Failed then or later: ISO 8601, UTC unless it says, or 2h ago."),
]
Until = Annotated[
    datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Failed then or earlier, as for --since.")
]
Id = Annotated[str | None, typer.Option("--id", metavar="ID", help="Only the message with this id.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many, the oldest.")]
Listed = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many, the oldest.")]
Rate = Annotated[float | None, typer.Option("--rate", min=0.01, metavar="N", help="At most so many a second.")]
Lossy = Annotated[
    bool, typer.Option("--lossy", help="Also messages of which something had to be cut when they failed.")
]
AnyOrigin = Annotated[
    bool, typer.Option("--any-origin", help="Also to other queues, where a message's headers say it came from there.")
]


@app.command("list")
def list_(
    queue: AnyQueue = None,
    exception: Exception_ = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    limit: Listed = 100,
    wide: options.Wide = False,
    amqp_url: options.AmqpUrl = None,
    management_url: options.ManagementUrl = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """The messages in an error queue, oldest first, without their bodies. Everything stays as it is.

    Without --queue: which error queues there are, and how many messages are in each. RabbitMQ tells that through its
    management API only.
    """
    settings = options.settings(amqp_url=amqp_url, management_url=management_url, config=config)
    wanted = ErrorFilter(exception=exception, type=type_, since=since, until=until)
    told: list[str] = []
    if queue is None:
        if wanted != ErrorFilter():
            raise UsageError("--exception, --type, --since and --until go with --queue: the queues are counted unread")
        found = [asdict(each) for each in asyncio.run(_count_queues(settings))]
        output.emit(found[:limit], json, QUEUE_COLUMNS, wide=wide)
    else:
        found = [error_rows.listed(each) for each in asyncio.run(_browse(settings, queue, wanted, limit + 1, told))]
        output.emit(found[:limit], json, COLUMNS, wide=wide, brief=error_rows.brief)
    if len(found) > limit:
        sys.stdout.flush()
        output.complain(f"there are more than these {limit}: give a larger --limit, or filters")
    _complain_of_unreadable(told)


@app.command()
def show(
    message_id: Annotated[str, typer.Argument(metavar="ID")],
    queue: Queue,
    amqp_url: options.AmqpUrl = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """All that is known of one message: diagnosis, stack trace, properties, headers, body."""
    settings = options.settings(amqp_url=amqp_url, config=config)
    told: list[str] = []
    entries = asyncio.run(_browse(settings, queue, ErrorFilter(message_id=message_id), None, told))
    if not entries:
        for each in told:
            output.complain(each)
        raise RelmsgError(f"there is no message {message_id} in the error queue of {queue}")
    rows = [row_of(each) for each in entries]
    if json:
        output.emit(rows, json, COLUMNS)
    else:
        for position, row in enumerate(rows):
            if position:
                output.write("")
            error_rows.write_whole(row)
    _complain_of_unreadable(told)


@app.command()
def requeue(
    queue: Queue,
    exception: Exception_ = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    message_id: Id = None,
    limit: Limit = None,
    rate: Rate = None,
    any_origin: AnyOrigin = False,
    lossy: Lossy = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    amqp_url: options.AmqpUrl = None,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Send messages back to the queue they came from. Stopped half way, none is lost.

    Where the consumer's database is named, messages older than its inbox remembers are told first: what was handled and
    forgotten takes effect once more.
    """
    _can_ask(yes=yes, dry_run=dry_run)
    wanted = ErrorFilter(message_id=message_id, exception=exception, type=type_, since=since, until=until)

    async def move(errors: ErrorQueue, most: int, report: _Report) -> None:
        report.stayed += await errors.requeue(
            wanted, limit=most, rate=rate, any_origin=any_origin, lossy=lossy, moved=report.moved
        )

    settings = options.settings(amqp_url=amqp_url, database_url=database_url, schema=schema, config=config)
    report = _Report("requeued", json, looks_at_age=True)
    asyncio.run(_move(settings, queue, wanted, report, move, limit, dry_run=dry_run, yes=yes))


@app.command()
def purge(
    queue: Queue,
    exception: Exception_ = None,
    type_: Type = None,
    since: Since = None,
    until: Until = None,
    message_id: Id = None,
    limit: Limit = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    amqp_url: options.AmqpUrl = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Remove messages for good."""
    _can_ask(yes=yes, dry_run=dry_run)
    wanted = ErrorFilter(message_id=message_id, exception=exception, type=type_, since=since, until=until)

    async def remove(errors: ErrorQueue, most: int, report: _Report) -> None:
        await errors.purge(wanted, limit=most, removed=lambda _: report.count())

    settings = options.settings(amqp_url=amqp_url, config=config)
    asyncio.run(_move(settings, queue, wanted, _Report("removed", json), remove, limit, dry_run=dry_run, yes=yes))


class _Report:
    """What was done so far; printed also when it was stopped half way."""

    def __init__(self, verb: str, json: bool, *, looks_at_age: bool = False) -> None:
        self.verb = verb
        self.json = json
        self.looks_at_age = looks_at_age
        self.older = 0
        self.done = 0
        self.without_user_id = 0
        self.stayed: list[Stayed] = []
        self.watch: Callable[[int], None] = lambda _: None

    def count(self) -> None:
        self.done += 1
        self.watch(1)

    def moved(self, entry: ErrorEntry) -> None:
        self.count()
        self.without_user_id += ORIGINAL_USER_ID in entry.headers

    def tell(self, line: str) -> None:
        """A line for a person: with --json stdout belongs to the program."""
        (sys.stderr if self.json else sys.stdout).write(output.printable(line) + "\n")
        sys.stdout.flush()

    def print(self, queue: str, matching: int) -> None:
        stayed = [{"message_id": each.entry.message_id, "reason": each.reason} for each in self.stayed]
        if self.without_user_id:
            output.complain(
                f"{self.without_user_id} of them had a user_id, which is not sent again: RabbitMQ takes it from its "
                "own login only, so a consumer that trusts users refuses them"
            )
        if self.json:
            row = {"queue": queue, "matching": matching, self.verb: self.done, "stayed": stayed}
            if self.older:
                row["older_than_window"] = self.older
            output.emit([row], self.json, ["queue"])
            return
        for each in stayed:
            output.write(output.printable(f"stayed: {each['message_id']}: {each['reason']}"))
        output.write(f"{self.verb} {self.done} of {matching}")


async def _move(
    settings: Settings,
    queue: str,
    wanted: ErrorFilter,
    report: _Report,
    action: Any,
    limit: int | None,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    told: list[str] = []
    async with _error_queue(settings, queue, told) as errors:
        matching = await _count(errors, settings, wanted, report)
        most = matching if limit is None else min(matching, limit)
        report.tell(f"{matching} {'message matches' if matching == 1 else 'messages match'} in {errors.name}")
        if wanted.message_id is not None and not matching:
            raise RelmsgError(f"no message {wanted.message_id} is in {errors.name}")
        if dry_run or most == 0:
            if report.json:
                report.print(errors.name, matching)
            _complain_of_unreadable(told)
            return
        if not yes and not await asyncio.to_thread(typer.confirm, f"{report.verb.capitalize()[:-1]} {most}?", err=True):
            report.tell("nothing was done")
            return
        try:
            with progress.bar(json=report.json) as bar:
                report.watch = bar.counter(report.verb, most)
                await action(errors, most, report)
        finally:
            report.print(errors.name, matching)
    _complain_of_unreadable(told)
    if report.stayed:
        raise typer.Exit(1)


async def _count(errors: ErrorQueue, settings: Settings, wanted: ErrorFilter, report: _Report) -> int:
    """How many match. Of a requeue those are told that are older than their consumer remembers."""
    if not report.looks_at_age:
        return await errors.count(wanted)
    windows = await dedup_windows.stored(settings)

    def forgetful(entry: ErrorEntry) -> str | None:
        return dedup_windows.may_have_forgotten(windows, entry.consumer, entry.published_at)

    found = await errors.tally(wanted, forgetful)
    for name, count in found.items():
        if name is not None:
            report.older += count
            output.complain(dedup_windows.warning(count, name, windows[name]))
    return found.total()


async def _count_queues(settings: Settings) -> list[ErrorQueueCount]:
    async with brief.connection(settings, "relmsg errors") as connection:
        return await error_queues(connection, settings.broker()[0], settings.management_url)


async def _browse(
    settings: Settings, queue: str, wanted: ErrorFilter, limit: int | None, told: list[str]
) -> list[ErrorEntry]:
    async with _error_queue(settings, queue, told) as errors:
        return await errors.browse(wanted, limit=limit)


def _complain_of_unreadable(told: list[str]) -> None:
    """Exit with code 1 after a line for each, if there are any."""
    if told:
        sys.stdout.flush()
        for each in dict.fromkeys(told):  # counting and moving meet the same ones
            output.complain(each)
        raise typer.Exit(1)


@asynccontextmanager
async def _error_queue(settings: Settings, queue: str, told: list[str]) -> AsyncIterator[ErrorQueue]:
    """The error queue; ``told`` gets a line for what cannot be read in it."""
    async with brief.connection(settings, "relmsg errors") as connection:
        errors = await ErrorQueue.of(connection, queue, unreadable=lambda each: told.append(str(each)))
        if hazard := await errors.hazard():
            output.complain(f"take care: {hazard}")
        yield errors


def _can_ask(*, yes: bool, dry_run: bool) -> None:
    if not yes and not dry_run and not sys.stdin.isatty():
        raise UsageError("nobody can be asked without a terminal: give --yes, or --dry-run to see how many are meant")
