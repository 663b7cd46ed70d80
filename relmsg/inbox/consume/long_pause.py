"""The trial that tells whether a consumer's database writes again after a long pause."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session

from relmsg.db.deadline import answering
from relmsg.db.failures import is_contention
from relmsg.inbox.identity import Identity
from relmsg.inbox.outcome import Unsettled
from relmsg.inbox.store import Store

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
