"""Messages that kill their worker: how often a message was begun and never finished.

Queues give no reliable count (reliability B4, B7), so it is kept in our database, and only for messages that were
delivered before: the first start is not recorded, it counts as one. A worker that dies takes innocent neighbours along;
therefore a message with two unfinished starts runs alone, and its third strike is its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import async_sessionmaker

from relmsg.db.deadline import answering
from relmsg.db.failures import brief, is_contention, refuses_row
from relmsg.inbox.handle.internal_error import concerns_message
from relmsg.inbox.identity import Identity
from relmsg.inbox.outcome import Attempted, Contended, Duplicate, Failed, Handled, Unsettled
from relmsg.inbox.store import Store
from relmsg.runtime.bounded_log import BoundedLog

log = logging.getLogger(__name__)

UNFINISHED_ALLOWED = 3
ANSWER_SECONDS = 10.0


class Forgotten:
    """The starts of a message are forgotten."""


class Starts:
    """Counts the starts of redelivered messages, each in a short transaction of its own, outside the handler's."""

    def __init__(self, sessions: async_sessionmaker[Any], store: Store) -> None:
        self._sessions = sessions
        self._store = store
        self._owed: set[Identity] = set()
        self._lines = BoundedLog(log)

    async def unfinished(self, identity: Identity) -> int | Contended | Unsettled:
        """How many starts of a redelivered message have ended without a word, the first, unrecorded one included."""
        try:
            async with answering(ANSWER_SECONDS), self._sessions() as session:
                return 1 + await self._store.starts(session, identity)
        except Exception as error:  # noqa: BLE001 - our own statement
            return 1 if concerns_message(error) else _met(error)

    async def counted(self, identity: Identity, attempt: Callable[[], Awaitable[Attempted]]) -> Attempted:
        """Make an attempt with its start recorded. It stays recorded only if this process does not live to see its end.

        It is recorded when the attempt really begins: a message that only waits cannot have killed anybody. A start
        that a rule of the user's refuses is not: the message is handled all the same.
        """
        try:
            await self._begin(identity)
        except Exception as error:  # noqa: BLE001 - as above
            if not refuses_row(error):
                return Failed(error, "internal_error") if concerns_message(error) else _met(error)
            self._lines.error("a start of message %s cannot be recorded: %s", identity.message_id, brief(error))
        try:
            outcome = await attempt()
        except asyncio.CancelledError:
            await self._take_back(identity)
            raise
        if not isinstance(outcome, Handled | Duplicate):  # these two have forgotten it in their own transaction
            await self._take_back(identity)
        return outcome

    async def forget(self, identity: Identity) -> Forgotten | Contended | Unsettled:
        """The message has come to an end; should it come again, it starts afresh."""
        try:
            async with answering(ANSWER_SECONDS), self._sessions() as session, session.begin():
                await self._store.forget_starts(session, identity)
        except Exception as error:  # noqa: BLE001 - as above
            if not (concerns_message(error) or refuses_row(error)):
                return _met(error)
            self._lines.error("the starts of message %s cannot be forgotten: %s", identity.message_id, brief(error))
        self._owed.discard(identity)
        return Forgotten()

    async def _begin(self, identity: Identity) -> None:
        if identity not in self._owed:
            async with answering(ANSWER_SECONDS), self._sessions() as session, session.begin():
                await self._store.start(session, identity)
        self._owed.discard(identity)

    async def _take_back(self, identity: Identity) -> None:
        try:
            async with answering(ANSWER_SECONDS), self._sessions() as session, session.begin():
                await self._store.take_back_start(session, identity)
        except Exception as error:  # noqa: BLE001 - what is recorded stands for the next start
            self._owed.add(identity)
            self._lines.info("a start of message %s could not be taken back: %s", identity.message_id, brief(error))


def _met(error: Exception) -> Contended | Unsettled:
    return Contended(error, ours=True) if is_contention(error) else Unsettled(error)
