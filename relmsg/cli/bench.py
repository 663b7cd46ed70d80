"""`relmsg bench`: how fast relmsg is on these services, and what limits it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from relmsg.bench.measure import Found
from relmsg.bench.place import place
from relmsg.bench.run import Part, Plan, run
from relmsg.broker.receipt import Unknown
from relmsg.cli import brief, options, output
from relmsg.errors import BrokerAway, RelmsgError, ServiceAway
from relmsg.settings import Settings

COLUMNS = ("what", "rate", "CPU us each", "note", "limited by")
INTERRUPTED, TERMINATED = 130, 143  # 128 and the signal's number, as a shell tells it


class QueueType(StrEnum):
    """The types of queues that relmsg declares."""

    QUORUM = "quorum"
    CLASSIC = "classic"


Messages = Annotated[
    int, typer.Option("--messages", min=10, max=10_000_000, metavar="N", help="In each row; slow rows take fewer.")
]
Body = Annotated[int, typer.Option("--body", min=0, metavar="BYTES", help="Size of each message's body.")]
Type = Annotated[QueueType, typer.Option("--queue-type", help="What kind of queue to measure with.")]
Only = Annotated[
    list[Part] | None, typer.Option("--only", show_default=False, help="Only this part; can be given several times.")
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON array of objects; times are in milliseconds.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(name="bench")(bench)


def bench(
    messages: Messages = 20_000,
    body: Body = 1024,
    queue_type: Type = QueueType.QUORUM,
    only: Only = None,
    database_url: options.DatabaseUrl = None,
    amqp_url: options.AmqpUrl = None,
    config: options.Config = None,
    json: Json = False,
) -> None:
    """Measure relmsg on this broker and this database, and say what limits each part.

    Everything happens in a schema, an exchange and queues of its own, which are removed in the end, also after Ctrl-C.
    What the services do meanwhile shows in the figures, and the load shows there.
    """
    settings = options.settings(database_url=database_url, amqp_url=amqp_url, config=config)
    settings.database()
    settings.broker()
    if body > settings.max_body_bytes:
        raise typer.BadParameter(f"{body} bytes are more than RELMSG_MAX_BODY_BYTES, {settings.max_body_bytes}")
    parts = tuple(each for each in Part if not only or each in only)
    found: list[Found] = []
    try:
        code = asyncio.run(_bench(settings, Plan(messages, parts), body, queue_type.value, found))
    finally:
        if found:
            output.report([_whole(each) if json else _brief(each) for each in found], json, COLUMNS)
            sys.stdout.flush()
    if code:
        raise typer.Exit(code)


async def _bench(settings: Settings, plan: Plan, body: int, queue_type: str, found: list[Found]) -> int:
    """Measure into ``found``, row by row; the exit code, which is not 0 where a signal has ended it."""
    work = asyncio.ensure_future(_measured(settings, plan, body, queue_type, found))
    loop = asyncio.get_running_loop()
    code = 0

    def stop(number: int, told: int) -> None:
        nonlocal code
        code = told
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)  # a second one ends the process at once
        output.complain(f"stopped by {signal.Signals(number).name}, removing what was made")
        work.cancel()

    loop.add_signal_handler(signal.SIGINT, stop, signal.SIGINT, INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, stop, signal.SIGTERM, TERMINATED)
    try:
        await work
    except asyncio.CancelledError:
        if not code:
            raise
    return code


async def _measured(settings: Settings, plan: Plan, body: int, queue_type: str, found: list[Found]) -> None:
    name = f"relmsg_bench_{secrets.token_hex(4)}"
    async with (
        brief.connection(settings, "relmsg bench") as connection,
        place(settings, connection, name=name, body=body, queue_type=queue_type, complain=output.complain) as ready,
    ):
        hosts = ", ".join(str(urlsplit(each).hostname) for each in settings.broker())
        database = urlsplit(settings.database()).hostname or "its socket"
        _tell(
            f"sends {plan.total:,} messages of {body:,} bytes through a {queue_type} queue on {hosts} and a schema on "
            f"{database}; both are called {name} and removed in the end"
        )
        try:
            with _Shown() as shown:
                async for row in run(ready, plan, shown):
                    found.append(row)  # noqa: PERF401 - one by one: a signal leaves those that are there
        except RelmsgError as error:
            if isinstance(error, ServiceAway) or (connection.is_up and not isinstance(error, Unknown)):
                raise
            raise BrokerAway(f"RabbitMQ went away meanwhile: {error}") from error  # whatever each row calls it


class _Shown:
    """How far it is, on stderr: a bar on a terminal, otherwise one line a row."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Shown:
        if sys.stderr.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            # Seldom drawn: drawing is CPU of the process that is measured.
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        if self._bar is None:
            _tell(f"measuring {what}: {total:,}")
        else:
            self._task = self._bar.add_task(what, total=total)
            self._bar.refresh()

    def advance(self, steps: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, steps)

    def end(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def _tell(line: str) -> None:
    """A line for a person: stdout belongs to the result."""
    sys.stderr.write(output.printable(line) + "\n")
    sys.stderr.flush()


def _brief(row: Found) -> dict[str, Any]:
    cpu = _cpu_us(row)
    return {
        "what": row.what,
        "rate": f"{row.rate:,.0f} {row.unit}/s",
        "CPU us each": f"{cpu:,.1f}" if cpu is not None else None,
        "note": _note(row),
        "limited by": row.verdict.sentence if row.verdict else None,
    }


def _note(row: Found) -> str | None:
    if row.median is not None and row.late is not None:
        return f"p50 {row.median * 1000:.2f} ms, p99 {row.late * 1000:.2f} ms"
    return f"{row.added:.2f}x the time without" if row.added is not None else None


def _whole(row: Found) -> dict[str, Any]:
    return {
        "part": row.part,
        "what": row.what,
        "rate": row.rate,
        "unit": row.unit,
        "count": row.work.count if row.work else None,
        "seconds": row.work.seconds if row.work else None,
        "cpu_us": _cpu_us(row),
        "cpu_share": row.work.cpu_share if row.work else None,
        "p50_ms": _ms(row.median),
        "p99_ms": _ms(row.late),
        "times_without": row.added,
        "limit": row.verdict.limit.value if row.verdict else None,
        "limited_by": row.verdict.sentence if row.verdict else None,
    }


def _cpu_us(row: Found) -> float | None:
    return row.work.cpu_seconds / row.work.count * 1_000_000 if row.work else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
