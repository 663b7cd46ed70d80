"""The demo: `make demo`. Two services, two databases, and three accidents on the way.

    .venv/bin/python compose/local.py run -- .venv/bin/python -m examples.flights.demo [--flights N]

While 27,004 real flights go from one service to the other, the relay is killed, the broker is restarted, and the
consumer is killed. At the end every flight must have taken effect once, or wait in the error queue with its reason.
Exit code 0 only if every count is right.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from compose.local import Services, ServicesError
from examples.flights import aircraft, departures
from examples.flights.account import Account, Line
from examples.flights.flight import Flight, read
from examples.flights.stage import Actor, DemoFailed, Stage
from examples.flights.topology import AIRCRAFT_QUEUE, FLIGHTS

QUEUES = (AIRCRAFT_QUEUE, f"{AIRCRAFT_QUEUE}.errors")
DEADLINE = 300.0  # a slow machine is no failure of the messages; on two cores it takes about a minute
RELAY = ("relay",)
CONSUME = ("consume", "examples.flights.aircraft:inbox")
PUBLISH = [sys.executable, "-m", "examples.flights.departures"]


class Show:
    """What the audience sees: bars on a terminal, lines everywhere else."""

    def __init__(self, total: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()
        self._said_at = 0.0
        self._total = total
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Show:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def say(self, line: str) -> None:
        self._console.print(f"{self.seconds:5.1f} s  {line}", markup=False)

    def progress(self, figures: dict[str, int]) -> None:
        if self._console.is_terminal:
            for name, count in figures.items():
                if name not in self._tasks:
                    self._tasks[name] = self._bars.add_task(name, total=self._total)
                self._bars.update(self._tasks[name], completed=count)
        elif self.seconds - self._said_at >= 5:
            self._said_at = self.seconds
            self.say(", ".join(f"{name} {count:,}" for name, count in figures.items()))

    def table(self, lines: list[Line]) -> None:
        if self._console.is_terminal:
            table = Table(box=None, header_style="bold", pad_edge=False)
            for name in ("", "messages", "expected", "counted how"):
                table.add_column(name, justify="right" if name in ("messages", "expected") else "left")
            for line in lines:
                style = "" if line.is_right else "red"
                table.add_row(line.what, f"{line.count:,}", _expected(line), line.source, style=style)
            self._console.print(table)
            return
        self._console.print(f"{'':<22}{'messages':>9}  {'expected':>9}  counted how", markup=False)
        for line in lines:
            self._console.print(f"{line.what:<22}{line.count:>9,}  {_expected(line):>9}  {line.source}", markup=False)


def _expected(line: Line) -> str:
    return "" if line.expected is None else f"{line.expected:,}"


class Demo:
    """One run."""

    def __init__(self, stage: Stage, flights: list[Flight], show: Show) -> None:
        self.stage = stage
        self.flights = flights
        self.show = show

    async def run(self) -> None:
        """From empty databases to the final table. :raises DemoFailed: on the first thing that is not as it should."""
        stage, show = self.stage, self.show
        self.departures, self.aircraft = await asyncio.gather(
            stage.database("departures", departures.metadata), stage.database("aircraft", aircraft.metadata)
        )
        self.account = Account(self.departures, self.aircraft)
        await self._refuse_leftovers()
        stage.at_the_end(self._delete_queues)
        await stage.run("topology", "declare", "examples.flights.topology:topology")
        relay, consumer = await asyncio.gather(self._relay(), self._consumer())
        show.say("databases migrated, topology declared; relay and consumer are running")
        count = ["--flights", str(len(self.flights))]
        publisher = await stage.start("the departures service", PUBLISH + count, self.departures)
        watching = asyncio.create_task(self._watch())
        try:
            await self._accidents(relay, consumer)
            await publisher.finished()
            await self._quiet()
        finally:
            watching.cancel()
        await self._settle()

    # -- the accidents ------------------------------------------------------------------------------------------------

    async def _accidents(self, relay: Actor, consumer: Actor) -> None:
        await self._until(self._begun, "messages are published")
        caught = await self._kill(relay, self.account.in_outbox)
        self.show.say(f"relay killed (SIGKILL) with {caught:,} messages in the outbox, some of them under way")
        left = await self.account.in_outbox()
        await self._relay()
        self.show.say("relay started again; the slots of the killed one are free when its lease is over")

        async def moving() -> bool:
            """The new relay works: the outbox has become shorter, or has been emptied."""
            nonlocal left
            now, before = await self.account.in_outbox(), left
            left = max(left, now)
            return now < before

        await self._until(moving, "the new relay takes over")
        await self._restart_broker()
        handled = await self.account.handled()
        enough = handled + (len(self.flights) - handled) // 4

        async def handled_enough() -> bool:
            return await self.account.handled() >= enough

        await self._until(handled_enough, "the consumer goes on")
        await consumer.ask()  # for the last time: what it has counted dies with it
        caught = await self._kill(consumer, self.account.open_transactions)
        self.show.say(f"consumer killed (SIGKILL) with {caught} transactions open")
        await self._consumer()
        self.show.say("consumer started again")

    async def _begun(self) -> bool:
        return await self.account.published() > len(self.flights) // 20

    async def _kill(self, actor: Actor, under_way: Callable[[], Awaitable[int]]) -> int:
        """Kill a process while it has work under way; returns how much. It is halted first, so that this is certain."""
        while True:
            actor.send(signal.SIGSTOP)
            caught = await under_way()
            if caught:
                await actor.kill()
                return caught
            actor.send(signal.SIGCONT)
            if await self._is_over():
                raise DemoFailed(f"{actor.name} could not be killed at work: nothing was left to do")

    async def _restart_broker(self) -> None:
        services = self.stage.services
        if not services.controlled:
            self.show.say("broker NOT restarted: it is known by its URL only (run this under compose/local.py)")
            return
        waiting = await self.account.in_outbox()
        queued = await self.account.published() - waiting - await self.account.handled()
        if waiting + queued <= 0:
            raise DemoFailed("the broker could not be restarted at work: nothing was left to do")
        self.show.say(
            f"broker is restarted with {waiting:,} messages in the outbox and {queued:,} sent and not handled"
        )
        await asyncio.to_thread(services.restart_rabbitmq)
        self.show.say("broker is back")

    async def _relay(self) -> Actor:
        return await self.stage.start_relmsg("the relay", *RELAY, database=self.departures)

    async def _consumer(self) -> Actor:
        return await self.stage.start_relmsg("the consumer", *CONSUME, database=self.aircraft)

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        while not await holds():
            if await self._is_over():
                raise DemoFailed(f"waited for this in vain: {what}")
            await asyncio.sleep(0.02)

    async def _is_over(self) -> bool:
        """Whether all there will ever be has been handled."""
        if self.show.seconds > DEADLINE:
            raise DemoFailed(f"not done after {DEADLINE:g} s")
        return await self.account.handled() >= sum(not flight.is_cancelled for flight in self.flights)

    async def _watch(self) -> None:
        while True:
            published, waiting = await self.account.published(), await self.account.in_outbox()
            self.show.progress(
                {"published": published, "confirmed": published - waiting, "handled": await self.account.handled()}
            )
            await asyncio.sleep(0.5)

    async def _quiet(self) -> None:
        """Wait until nothing is in the outbox, nothing in the queue, and nothing in the consumer, twice in a row."""
        calm = 0
        while calm < 2:
            await asyncio.sleep(0.3)
            waiting, handled = await self.account.in_outbox(), await self.account.handled()
            ready = await self._ready(AIRCRAFT_QUEUE)
            await self.stage.ask_all()
            held = sum(actor.in_flight for actor in self.stage.actors if actor.is_running)
            still = waiting == 0 and ready == 0 and held == 0 and handled == await self.account.handled()
            calm = calm + 1 if still else 0
            if self.show.seconds > DEADLINE:
                raise DemoFailed(
                    f"not done after {DEADLINE:g} s: {waiting} in the outbox, {ready} in the queue, {held} in the "
                    f"consumer, {handled} handled"
                )

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        errors = await self.stage.run("errors", "list", "--queue", AIRCRAFT_QUEUE, "--limit", "1000000", "--json")
        await self.stage.ask_all()
        duplicates = sum(actor.duplicates for actor in self.stage.actors)
        lines = await self.account.lines(self.flights, errors, duplicates)
        compared, wrong = await self.account.differences(self.flights)
        self.show.say("all is quiet; the account:")
        self.show.table(lines)
        mistakes = [f"{line.what}: {line.count}, expected {line.expected}" for line in lines if not line.is_right]
        if wrong:
            mistakes.append(f"{len(wrong)} of {compared} aircraft differ from the file, such as {wrong[0]}")
        if mistakes:
            raise DemoFailed("; ".join(mistakes))
        self.show.say(f"the aircraft table equals the file: {compared:,} aircraft, row by row")

    # -- the broker's queues ------------------------------------------------------------------------------------------

    async def _ready(self, queue: str) -> int:
        async with await aio_pika.connect(self.stage.services.amqp_url) as connection:
            channel = await connection.channel()
            return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0

    async def _refuse_leftovers(self) -> None:
        """What is in our queues already would be counted as ours."""
        for queue in QUEUES:
            with suppress(ChannelNotFoundEntity):
                if left := await self._ready(queue):
                    raise DemoFailed(f"queue {queue} holds {left} messages of something else: delete it first")

    async def _delete_queues(self) -> None:
        with suppress(OSError, AMQPError):
            async with await aio_pika.connect(self.stage.services.amqp_url) as connection:
                channel = await connection.channel()
                for queue in QUEUES:
                    await channel.queue_delete(queue)
                await channel.exchange_delete(FLIGHTS)


async def play(count: int | None) -> int:
    services = await asyncio.to_thread(Services.obtain)
    own = services.owned
    try:
        flights = read(count)
        with Show(len(flights)) as show:
            where = urlsplit(services.amqp_url)
            show.say(f"{len(flights):,} flights, broker at {where.hostname}:{where.port}")
            try:
                async with Stage(services) as stage:
                    await Demo(stage, flights, show).run()
            except DemoFailed as failed:
                show.say(f"FAILED: {failed}")
                return 1
            show.say("everything is right")
            return 0
    finally:
        if own:
            await asyncio.to_thread(services.stop)


async def _interruptible(count: int | None) -> int:
    """Ctrl-C, SIGTERM and SIGHUP end the demo in good order."""
    playing = asyncio.ensure_future(play(count))
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def end(number: int) -> None:
        if not told:  # a second one must not interrupt the cleaning up
            told.append(number)
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    try:
        return await playing
    except asyncio.CancelledError:
        print("demo: broken off; everything it started is stopped", file=sys.stderr)
        return 128 + told[0] if told else 1


def main() -> int:
    summary = (__doc__ or "").split("\n", 1)[0]
    parser = argparse.ArgumentParser(prog="python -m examples.flights.demo", description=summary)
    parser.add_argument("--flights", type=int, metavar="N", help="only the first N flights")
    arguments = parser.parse_args()
    try:
        return asyncio.run(_interruptible(arguments.flights))
    except ServicesError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
