"""From the commit to the handler, at a rate that keeps nobody busy."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace

from relmsg.bench.consuming import inbox_of, run
from relmsg.bench.limits import Trips, Work, latency_verdict
from relmsg.bench.measure import Found, Progress, Stopwatch, counted, first, quantile, running
from relmsg.bench.place import SOURCE, TYPE, Place
from relmsg.message import Message
from relmsg.outbox.hint import Hint
from relmsg.outbox.publish import Outbox
from relmsg.outbox.relay import Relay

A_SECOND = 50


async def latency(place: Place, count: int, trips: Trips, progress: Progress, *, hint: bool) -> Found:
    """One transaction with a message every 20 ms, a relay and a consumer, all in this process.

    The time begins when COMMIT has returned and ends when the handler is called.

    :raises RelmsgError: nothing has moved for 30 s.
    """
    what = f"commit to handler at {A_SECOND} a second, {'with a Hint' if hint else 'polling only'}"
    progress.begin(what, count)
    inbox = inbox_of(place, f"{place.name} latency {'hint' if hint else 'polling'}")
    arrived: dict[str, float] = {}
    committed: dict[str, float] = {}

    @inbox.handler(TYPE, queue=place.name)
    async def note(message: Message) -> None:
        arrived.setdefault(str(message.id), time.perf_counter())

    started = asyncio.Event()
    async with AsyncExitStack() as stack:
        consumer = await stack.enter_async_context(running(lambda stop: run(inbox, place, stop, started)))
        await first(started, consumer)
        relay = Relay(replace(place.settings, listen=hint))
        relaying = await stack.enter_async_context(running(relay.run))
        await first(relay.started, relaying)
        wake = await stack.enter_async_context(Hint(place.engine, schema=place.settings.schema)) if hint else None
        outbox = Outbox(SOURCE, schema=place.settings.schema, wake=wake)
        watch = Stopwatch()
        for number in range(count):
            await asyncio.sleep(max(0.0, number / A_SECOND - watch.seconds))
            message = place.message()
            async with place.sessions.begin() as session:
                await outbox.publish(session, message)
            committed[str(message.id)] = time.perf_counter()
        await counted(lambda: len(arrived), count, relaying, progress, lambda: relay.ready() or inbox.ready())
        work = Work(count=count, seconds=watch.seconds, cpu_seconds=watch.cpu_seconds)
    progress.end()
    await place.empty_queue()
    # With a hint the handler can be there before this process has heard of its own commit.
    taken = [max(0.0, arrived[each] - committed[each]) for each in committed]
    median = quantile(taken, 0.5)
    polls = None if hint else (place.settings.poll_min, place.settings.poll_max)
    found = Found.of("latency", what, work, latency_verdict(median, trips, polls))
    return replace(found, median=median, late=quantile(taken, 0.99))
