"""Messages that kill their worker: how often a message was begun and never finished.

Queues give no reliable count (reliability B4, B7), so it is kept in our database, and only for messages that were
delivered before: the first start is not recorded, it counts as one. A worker that dies takes innocent neighbours along;
therefore a message with two unfinished starts runs alone, and the third strike is its own.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import async_sessionmaker

from relmsg.inbox.identity import Identity
from relmsg.inbox.outcome import Unsettled
from relmsg.inbox.store import Store

UNFINISHED_ALLOWED = 3


class Forgotten:
    """The count of a message is gone."""


class Starts:
    """Counts the starts of redelivered messages, each in a short transaction of its own, outside the handler's."""

    def __init__(self, sessions: async_sessionmaker[Any], store: Store) -> None:
        self._sessions = sessions
        self._store = store

    async def begin(self, identity: Identity) -> int | Unsettled:
        """Record a start; how many earlier ones have ended without a word. Unsettled where that cannot be recorded."""
        try:
            async with self._sessions() as session, session.begin():
                # One less, for this one has only begun; one more, for the first was never recorded.
                return await self._store.start(session, identity)
        except Exception as error:  # noqa: BLE001 - our own statement: never the message's fault
            return Unsettled(error)

    async def take_back(self, identity: Identity) -> None:
        """The worker is alive: what was recorded last does not count."""
        async with self._sessions() as session, session.begin():
            await self._store.take_back(session, identity)

    async def forget(self, identity: Identity) -> Unsettled | Forgotten:
        """The message has come to an end; should it come again, it starts afresh."""
        try:
            async with self._sessions() as session, session.begin():
                await self._store.forget_starts(session, identity)
        except Exception as error:  # noqa: BLE001 - as above
            return Unsettled(error)
        return Forgotten()
