"""Gives deliveries back to the broker while the database is away for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from relmsg.broker.subscriber import Subscriber

log = logging.getLogger(__name__)

LONG_SECONDS = 60.0  # far below RabbitMQ's consumer_timeout, 30 minutes, after which it takes them back by itself


class LongPause:
    """Ends subscriptions when the database has been away for a minute, and begins them again when it answers.

    A consumer that only paused would keep its deliveries. RabbitMQ takes them back after 30 minutes (its
    ``consumer_timeout``) and counts a delivery each time, until the delivery limit dead-letters messages that nothing
    is wrong with. Given back, they are counted once, however long the database is away.

    :param away_for: returns when the database has been away for so many seconds without a break.
    :param back: returns when it answers; nothing is consumed before.
    """

    def __init__(
        self,
        away_for: Callable[[float], Awaitable[object]],
        back: Callable[[], Awaitable[object]],
        subscribers: Sequence[Subscriber],
        seconds: float = LONG_SECONDS,
    ) -> None:
        self._away_for = away_for
        self._back = back
        self._subscribers = subscribers
        self._seconds = seconds

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._away_for(self._seconds)
            log.warning("the pause is a long one: all deliveries are given back to the broker until it is over")
            await asyncio.gather(*(subscriber.pause() for subscriber in self._subscribers))
            await self._back()
            for subscriber in self._subscribers:
                subscriber.resume()
