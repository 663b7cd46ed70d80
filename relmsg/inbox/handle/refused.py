"""Tells a message whose inbox row alone is refused from a database that refuses the rows of all."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session

from relmsg.clock import Clock
from relmsg.db.deadline import answering
from relmsg.db.failures import is_contention, may_concern_one, refuses_values
from relmsg.exceptions import causes
from relmsg.inbox.identity import Identity
from relmsg.inbox.store import Store
from relmsg.inbox.transaction import Opened
from relmsg.runtime.isolated import is_stop

ANSWER_SECONDS = 10.0
TRIAL = "relmsg: trial"


class Refusals:
    """What is known of refused inbox rows; shared by all attempts of a consumer.

    A trigger or constraint of the user's may refuse the row of one message, of some, or of all. The message is at fault
    if the database takes a row that is like its own but for the message id, or one from another source that the
    consumer knows, or if it has taken another message since it last refused this one. Otherwise it may refuse all: then
    nobody is at fault, and everybody waits.
    """

    def __init__(self, sessions: async_sessionmaker[Any], store: Store, clock: Clock) -> None:
        self._sessions = sessions
        self._store = store
        self._clock = clock
        self._last: tuple[float, Identity, BaseException] | None = None

    async def is_alone(self, identity: Identity, error: BaseException, refused_at: float | None) -> bool:
        """Whether the database takes others, having refused this message now, and at ``refused_at`` before."""
        if refused_at is not None and self._store.taken_at > refused_at:
            return True
        if await self._takes_another(identity, error):
            return True
        self._last = (self._clock.monotonic(), identity, error)
        return False

    async def why_paused(self, consumer: str) -> BaseException | None:
        """Why a consumer that gave its messages back should not take them again; None: it should.

        A row of no message is written. A rule that refuses this one may let those of messages pass: then it is an
        obstacle only if the last row of a message was refused, and a row like that one still is.
        """
        error = await self._refused(Identity(consumer, TRIAL, _new_id()))
        if error is None or is_contention(error):
            return None
        if not may_concern_one(error) or self._last is None or self._last[0] < self._store.taken_at:
            return None if may_concern_one(error) else error
        _, identity, refusal = self._last
        return None if await self._takes_another(identity, refusal) else error

    async def _takes_another(self, identity: Identity, error: BaseException) -> bool:
        async for other in self._others(identity, error):
            if await self._refused(other) is None:
                return True
        return False

    async def _others(self, identity: Identity, error: BaseException) -> AsyncIterator[Identity]:
        """Rows of no message that differ from a refused one by as little as can be."""
        if any(map(refuses_values, causes(error))):  # the source may be what cannot be stored
            yield Identity(identity.consumer, TRIAL, _new_id())
            return
        yield Identity(identity.consumer, identity.source, _new_id())
        found: list[str | None] = []

        def look(session: Session) -> None:
            found.append(self._store.other_source(session.connection(), identity))

        if await self._failed(look) is None and found[0] is not None:
            yield Identity(identity.consumer, found[0], _new_id())

    async def _refused(self, identity: Identity) -> BaseException | None:
        """Why the database does not take this row now; None: it does, and nothing is kept of it."""
        return await self._failed(lambda session: self._store.once(session.connection(), identity))

    async def _failed(self, work: Any) -> BaseException | None:
        try:
            async with answering(ANSWER_SECONDS), Opened(self._sessions) as session:
                await session.run_sync(work)
                await session.rollback()
        except BaseException as error:  # whatever it is, it is told to the caller
            if is_stop(error):
                raise
            return error
        return None


def _new_id() -> str:
    return str(uuid.uuid4())
