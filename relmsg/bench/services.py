"""The round trips: what one answer of PostgreSQL, one commit and one confirm take when nothing else goes on."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from relmsg.bench.limits import Trips
from relmsg.bench.measure import Found, Progress, quantile
from relmsg.bench.place import SOURCE, Place
from relmsg.broker.publisher import Publisher
from relmsg.schema import quoted

PART = "services"


async def round_trips(place: Place, samples: int, progress: Progress) -> tuple[Trips, list[Found]]:
    """Measure each so many times, one after another, and its median."""
    insert = f"INSERT INTO {quoted(place.settings.schema, place.effect.name)} (message_id) VALUES ('x')"  # noqa: S608
    async with place.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None

        async def begin() -> None:
            await raw.execute("BEGIN")
            await raw.execute(insert)

        async def nothing() -> None:
            pass

        selects = await _timed("SELECT 1", nothing, lambda: raw.fetchval("SELECT 1"), samples, progress)
        commits = await _timed("COMMIT of one row", begin, lambda: raw.execute("COMMIT"), samples, progress)
    async with Publisher(place.amqp_url, source=SOURCE, max_body_bytes=place.settings.max_body_bytes) as publisher:

        async def publish() -> object:
            return await publisher.publish(place.message())

        confirms = await _timed("confirm of one message", nothing, publish, samples, progress)
    await place.empty_queue()
    timed = {"SELECT 1": selects, "COMMIT of one row": commits, "confirm of one message": confirms}
    found = [_row(what, values) for what, values in timed.items()]
    return Trips(select=_median(selects), commit=_median(commits), confirm=_median(confirms)), found


async def _timed(
    what: str,
    before: Callable[[], Awaitable[None]],
    call: Callable[[], Awaitable[object]],
    samples: int,
    progress: Progress,
) -> list[float]:
    progress.begin(what, samples)
    taken = []
    for _ in range(samples):
        await before()
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
        progress.advance(1)
    progress.end()
    return taken


def _median(values: list[float]) -> float:
    return quantile(values, 0.5)


def _row(what: str, values: list[float]) -> Found:
    return Found(
        part=PART,
        what=what,
        unit="times",
        rate=len(values) / sum(values),
        median=_median(values),
        late=quantile(values, 0.99),
    )
