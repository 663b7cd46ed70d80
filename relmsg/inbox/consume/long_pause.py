"""Gives deliveries back to the broker while the database is away for long."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session

from relmsg.broker.subscriber import Subscriber
from relmsg.db.deadline import answering
from relmsg.db.failures import is_contention
from relmsg.inbox.gate import Gate
from relmsg.inbox.identity import Identity
from relmsg.inbox.outcome import Unsettled
from relmsg.inbox.store import Store

log = logging.getLogger(__name__)

LONG_SECONDS = 60.0  # far below RabbitMQ's consumer_timeout, 30 minutes, after which it takes them back by itself
ANSWER_SECONDS = 10.0

Trial = Callable[[], Awaitable["Answers | Unsettled"]]


class Answers:
    """The database takes an inbox row."""


def writing(sessions: async_sessionmaker[Any], store: Store, consumer: str) -> Trial:
    """A trial of the database: an inbox row of no message is written, and rolled back."""

    async def write() -> Answers | Unsettled:
        try:
            async with answering(ANSWER_SECONDS), sessions() as session:
                await session.run_sync(_write, store, Identity(consumer, "relmsg: trial", str(uuid.uuid4())))
                await session.rollback()
        except Exception as error:  # noqa: BLE001 - our own statement: whatever it is, it is the database's trouble
            return Answers() if is_contention(error) else Unsettled(error)
        return Answers()

    return write


def _write(session: Session, store: Store, identity: Identity) -> None:
    store.once(session.connection(), identity)


class LongPause:
    """Ends the subscriptions when a gate has been shut for a minute, and begins them again when the trial succeeds.

    A consumer that only paused would keep its deliveries. RabbitMQ takes them back after 30 minutes (its
    ``consumer_timeout``) and counts a delivery each time, until the delivery limit dead-letters messages that nothing
    is wrong with. Given back, they are counted once, however long the database is away.
    """

    def __init__(self, gate: Gate, trial: Trial, subscribers: Sequence[Subscriber], seconds: float) -> None:
        self._gate = gate
        self._trial = trial
        self._subscribers = subscribers
        self._seconds = seconds

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._gate.shut_for(self._seconds)
            log.warning("the pause is a long one: all deliveries are given back to the broker until it is over")
            await asyncio.gather(*(subscriber.pause() for subscriber in self._subscribers))
            await self._gate.until_settled(self._trial)
            for subscriber in self._subscribers:
                subscriber.resume()
