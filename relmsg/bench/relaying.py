"""A full outbox, emptied by one relay with the user's own settings."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from relmsg.bench.limits import Trips, Work, verdict
from relmsg.bench.measure import LOOK_SECONDS, STALL_SECONDS, Found, Progress, Stopwatch, counted, first, running
from relmsg.bench.place import Place
from relmsg.errors import RelmsgError
from relmsg.outbox.relay import Relay
from relmsg.schema import quoted


async def relaying(place: Place, count: int, trips: Trips, ceiling: float | None, progress: Progress) -> Found:
    """From the moment the relay is ready until its outbox is empty: every message confirmed, every row deleted.

    :raises RelmsgError: nothing has moved for 30 s.
    """
    what = "a relay empties an outbox"
    progress.begin(what, count)
    await place.fill_outbox(count)
    relay = Relay(place.settings)
    registry = relay.metrics.registry

    def confirmed() -> int:
        return int(registry.get_sample_value("relmsg_relay_receipts_total", {"receipt": "confirmed"}) or 0)

    async with running(relay.run) as task:
        await first(relay.started, task)
        watch = Stopwatch()
        await counted(confirmed, count, task, progress, relay.ready)
        seconds = watch.seconds
        while await _rows(place):
            if watch.seconds > seconds + STALL_SECONDS:
                raise RelmsgError(f"all is confirmed, but the outbox is not empty {STALL_SECONDS:.0f} s later")
            await asyncio.sleep(LOOK_SECONDS)
        seconds, cpu_seconds = watch.seconds, watch.cpu_seconds
    progress.end()
    await place.empty_queue()
    batch = min(place.settings.batch, count)
    # A batch is one read and one delete, which commits by itself.
    work = Work(
        count=count, seconds=seconds, cpu_seconds=cpu_seconds, trips=2 / batch, commits=1 / batch, confirmed=True
    )
    return Found.of("relay", what, work, verdict(work, trips, ceiling))


async def _rows(place: Place) -> bool:
    table = quoted(place.settings.schema, "outbox_message")
    async with place.engine.connect() as connection:
        question = text(f"SELECT EXISTS (SELECT FROM {table})")  # noqa: S608 - quoted
        return bool((await connection.execute(question)).scalar())
