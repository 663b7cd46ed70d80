"""The outbox from the publishing side: what a message adds to a transaction that writes one row of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from sqlalchemy import text

from relmsg.bench.limits import Trips, Work, verdict
from relmsg.bench.measure import Found, Progress, Stopwatch
from relmsg.bench.place import CHUNK, SOURCE, Place
from relmsg.outbox.publish import Outbox
from relmsg.schema import quoted

PART = "outbox"
SLICES = 4  # with and without take turns: what else goes on in the machine meets both alike
# A transaction waits for BEGIN, its own INSERT and COMMIT one after another; a message is one INSERT more.
WITHOUT, WITH = 3, 4


async def transactions(place: Place, count: int, lanes: int, trips: Trips, progress: Progress) -> list[Found]:
    """``outbox.publish`` of one message in each of ``count`` transactions, ``lanes`` at a time; and without it."""
    title = f"transactions, {lanes} at a time"
    progress.begin(title, 2 * count)
    outbox = _outbox(place)

    async def without() -> None:
        async with place.sessions.begin() as session:
            await session.execute(place.effect.insert().values(message_id="bench"))

    async def with_message() -> None:
        async with place.sessions.begin() as session:
            await session.execute(place.effect.insert().values(message_id="bench"))
            await outbox.publish(session, place.message())

    for warm in (without, with_message):
        await _at_a_time(warm, lanes, lanes, lambda _: None)
    taken: dict[str, list[float]] = {"without": [0.0, 0.0, 0], "with": [0.0, 0.0, 0]}
    for part in range(SLICES):
        share = count * (part + 1) // SLICES - count * part // SLICES
        for name, transaction in (("without", without), ("with", with_message)):
            watch = Stopwatch()
            await _at_a_time(transaction, share, lanes, progress.advance)
            taken[name][0] += watch.seconds
            taken[name][1] += watch.cpu_seconds
            taken[name][2] += share
    progress.end()
    await _empty(place)
    found = []
    for name, each in (("without", WITHOUT), ("with", WITH)):
        seconds, cpu_seconds, done = taken[name]
        work = Work(
            count=int(done), seconds=seconds, cpu_seconds=cpu_seconds, lanes=min(lanes, count), trips=each, commits=1
        )
        what = f"{title}, {'a message in each' if name == 'with' else 'no message'}"
        found.append(Found.of(PART, what, work, verdict(work, trips), "transactions"))
    return [found[0], replace(found[1], added=taken["with"][0] / taken["without"][0])]


async def many(place: Place, count: int, trips: Trips, progress: Progress) -> Found:
    """``outbox.publish_many``: 1,000 messages in each transaction."""
    what = f"outbox.publish_many, {CHUNK:,} a transaction"
    progress.begin(what, count)
    outbox = _outbox(place)
    seconds = cpu_seconds = 0.0
    for messages in place.chunks(count):
        watch = Stopwatch()
        async with place.sessions.begin() as session:
            await outbox.publish_many(session, messages)
        seconds += watch.seconds
        cpu_seconds += watch.cpu_seconds
        progress.advance(len(messages))
    progress.end()
    await _empty(place)
    batch = min(CHUNK, count)
    work = Work(count=count, seconds=seconds, cpu_seconds=cpu_seconds, trips=3 / batch, commits=1 / batch)
    return Found.of(PART, what, work, verdict(work, trips))


def _outbox(place: Place) -> Outbox:
    return Outbox(SOURCE, schema=place.settings.schema, max_body_bytes=place.settings.max_body_bytes)


async def _at_a_time(
    transaction: Callable[[], Awaitable[None]], count: int, lanes: int, done: Callable[[int], None]
) -> None:
    left = iter(range(count))

    async def lane() -> None:
        for _ in left:
            await transaction()
            done(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())


async def _empty(place: Place) -> None:
    """TRUNCATE: no dead row of this part slows the next one."""
    schema = place.settings.schema
    async with place.engine.begin() as connection:
        tables = f"{quoted(schema, 'outbox_message')}, {quoted(schema, place.effect.name)}"
        await connection.execute(text(f"TRUNCATE {tables}"))
