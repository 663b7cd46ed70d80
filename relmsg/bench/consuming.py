"""A full queue, emptied by one consumer whose handler writes one row a message."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncSession

from relmsg.bench.limits import Trips, Work, verdict
from relmsg.bench.measure import Found, Progress, Stopwatch, counted, first, running
from relmsg.bench.place import TYPE, Place
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message

DRAIN_SECONDS = 2.0


class Way(StrEnum):
    """How messages come to the handler, and into transactions."""

    SINGLE = "a transaction a message"
    GROUP = "group commit"
    LIST = "a list handler"


# What a message waits for: BEGIN, the inbox's row, the handler's row, COMMIT; a group of 50 or 200 shares what it can.
WAITS = {Way.SINGLE: (4, 1), Way.GROUP: (1 + 3 / 50, 1 / 50), Way.LIST: (4 / 200, 1 / 200)}


async def consuming(place: Place, way: Way, count: int, trips: Trips, progress: Progress) -> Found:
    """From the moment the queue is consumed until each message is handled, committed and acked.

    :raises RelmsgError: nothing has moved for 30 s.
    """
    what = f"a consumer, {way}"
    progress.begin(what, count)
    await place.fill_queue(count)
    name = f"{place.name} {way.name.lower()}"
    inbox = inbox_of(place, name)
    _register(inbox, place, way)
    labels = {"consumer": name, "queue": place.name, "outcome": "handled"}

    def handled() -> int:
        return int(inbox.metrics.registry.get_sample_value("relmsg_consumer_deliveries_total", labels) or 0)

    started = asyncio.Event()
    async with running(lambda stop: run(inbox, place, stop, started)) as task:
        await first(started, task)
        watch = Stopwatch()
        await counted(handled, count, task, progress, inbox.ready)
        seconds, cpu_seconds = watch.seconds, watch.cpu_seconds
    progress.end()
    await place.empty_queue()
    each, commits = WAITS[way]
    work = Work(
        count=count,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        lanes=min(place.settings.concurrency, count),
        trips=each,
        commits=commits,
    )
    return Found.of("consumer", what, work, verdict(work, trips))


def inbox_of(place: Place, name: str) -> Inbox:
    """An Inbox in the benchmark's own place, with the user's settings."""
    return Inbox(
        name,
        place.sessions,
        schema=place.settings.schema,
        error_exchange=place.error_exchange,
        prefetch=place.settings.prefetch,
        concurrency=place.settings.concurrency,
        drain=DRAIN_SECONDS,
        heartbeat=place.settings.heartbeat,
    )


async def run(inbox: Inbox, place: Place, stop: asyncio.Event, started: asyncio.Event) -> None:
    """Run it until ``stop``; ``started`` is set once the queue is consumed."""
    await inbox.run(place.amqp_url, stop, started=started.set)


def _register(inbox: Inbox, place: Place, way: Way) -> None:
    insert = place.effect.insert()
    if way is Way.LIST:

        @inbox.handler(TYPE, queue=place.name)
        async def together(messages: list[Message], session: AsyncSession) -> None:
            await session.execute(insert, [{"message_id": str(each.id)} for each in messages])

    else:

        @inbox.handler(TYPE, queue=place.name, group=1 if way is Way.SINGLE else None)
        async def single(message: Message, session: AsyncSession) -> None:
            await session.execute(insert, {"message_id": str(message.id)})
