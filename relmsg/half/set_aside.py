"""Half messages that the database refuses to write: the others go on, and these are tried seldom."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from relmsg.clock import Clock
from relmsg.db.divided import MOST_REFUSED, divided
from relmsg.db.failures import is_refusal
from relmsg.errors import DatabaseAway
from relmsg.runtime.bounded_log import BoundedLog

log = logging.getLogger(__name__)

RETRY_SECONDS, MOST_RETRY_SECONDS = 60.0, 3600.0
MOST = 1000


class SetAside:
    """Those which a trigger or a constraint of the user's refuses, for one kind of work.

    Each is told once, and tried again after a minute, which doubles up to an hour.

    Where the first eight are refused and nothing passes, those are set aside and the rest is left for the next time: it
    may be the fault of all, so DatabaseAway is raised. So it is where 1000 are set aside already.

    :param work: what cannot be done; it completes "half message … cannot be".
    """

    def __init__(self, work: str, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._until: dict[UUID, float] = {}
        self._pauses: dict[UUID, float] = {}
        self._lines = BoundedLog(log, clock.monotonic)

    def __call__(self) -> list[UUID]:
        """Those to be left alone now."""
        now = self._clock.monotonic()
        self._until = {each: until for each, until in self._until.items() if until > now}
        return list(self._until)

    async def each(self, half_ids: Sequence[UUID], write: Callable[[Sequence[UUID]], Awaitable[object]]) -> None:
        """Write these by as few statements as the refused ones allow.

        :raises DatabaseAway: the server is away, or refuses all of them.
        """
        written: list[UUID] = []
        # In any order: those that are refused often lie together, and must not be taken for all.
        shuffled = random.sample(half_ids, len(half_ids))
        refused = await divided(shuffled, write, written.extend)
        for half_id in written if self._pauses else ():
            self._pauses.pop(half_id, None)
        if not refused:
            return
        tried = list(refused.items()) if written else list(refused.items())[:MOST_REFUSED]
        for half_id, error in tried:
            self._tell(half_id, error)
        if (not written and len(tried) == MOST_REFUSED) or len(self._until) >= MOST:
            raise tried[0][1]

    async def all_or_each(
        self,
        whole: Callable[[], Awaitable[object]],
        which: Callable[[], Awaitable[Sequence[UUID]]],
        write: Callable[[Sequence[UUID]], Awaitable[object]],
    ) -> None:
        """Do it by one statement; if that is refused, look ``which`` ones it would take, and write ``each``."""
        try:
            await whole()
        except DatabaseAway as error:
            if not is_refusal(error):
                raise
            await self.each(await which(), write)

    def _tell(self, half_id: UUID, error: DatabaseAway) -> None:
        pause = self._pauses.get(half_id, 0.0)
        if len(self._pauses) >= 2 * MOST:
            self._pauses.clear()
        self._pauses[half_id] = min(2 * pause, MOST_RETRY_SECONDS) or RETRY_SECONDS
        self._until[half_id] = self._clock.monotonic() + self._pauses[half_id]
        if not pause:
            self._lines.error("half message %s cannot be %s: %s", half_id, self._work, error)
