"""Publishing without a database: what the broker takes from one Publisher."""

from __future__ import annotations

from relmsg.bench.limits import Trips, Work, verdict
from relmsg.bench.measure import Found, Progress, Stopwatch
from relmsg.bench.place import SOURCE, Place
from relmsg.broker.publisher import Publisher
from relmsg.broker.receipt import Confirmed

CALL = 10_000  # messages in one call: several windows, so that the wait at its end hardly counts


async def publishing(place: Place, count: int, trips: Trips, progress: Progress) -> Found:
    """``Publisher.publish_many``: confirmed messages a second. :raises NotConfirmed: a message was not taken."""
    what = "Publisher.publish_many"
    progress.begin(what, count)
    settings = place.settings
    seconds = cpu_seconds = 0.0
    async with Publisher(
        place.amqp_url, source=SOURCE, window=settings.window, max_body_bytes=settings.max_body_bytes
    ) as publisher:
        for start in range(0, count, CALL):
            messages = [place.message() for _ in range(min(CALL, count - start))]
            watch = Stopwatch()
            receipts = await publisher.publish_many(messages, raises=False)
            seconds += watch.seconds
            cpu_seconds += watch.cpu_seconds
            for receipt in receipts:
                if not isinstance(receipt, Confirmed):
                    raise receipt
            progress.advance(len(messages))
    progress.end()
    await place.empty_queue()
    work = Work(count=count, seconds=seconds, cpu_seconds=cpu_seconds, confirmed=True)
    return Found.of("publishing", what, work, verdict(work, trips))
