"""When a coordinator's database has been away for long, and when it takes half messages again."""

from __future__ import annotations

import random
from collections.abc import Callable

from relmsg.clock import Clock
from relmsg.db.failures import is_refusal
from relmsg.errors import DatabaseAway
from relmsg.half.intake import Intake
from relmsg.half.store import HalfStore
from relmsg.outage import Outage
from relmsg.retry import full_jitter

LOOK_SECONDS = 1.0
BASE_SECONDS, CAP_SECONDS = 0.1, 10.0


class DatabasePause:
    """Tells by a trial whether it is the database that deliveries wait for.

    The trial writes a row of no half message and rolls it back. While it succeeds the deliveries wait for something of
    their own, such as a trigger that refuses them: given back, they would come at once and only be counted.
    """

    def __init__(
        self,
        store: HalfStore,
        intake: Intake,
        database: Outage,
        *,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._intake = intake
        self._database = database
        self._clock = clock
        self._chance = chance

    async def away_for(self, seconds: float) -> None:
        """Wait until deliveries have waited so many seconds for the database, and a trial fails too."""
        while self._intake.waiting_for_database_seconds() < seconds or await self._writes():
            await self._clock.sleep(LOOK_SECONDS)

    async def back(self) -> None:
        """Wait until a trial succeeds; it is repeated with backoff and full jitter (0.1 s up to 10 s)."""
        failures = 0
        while not await self._writes():
            failures += 1
            await self._clock.sleep(full_jitter(failures, BASE_SECONDS, CAP_SECONDS, self._chance))

    async def _writes(self) -> bool:
        try:
            await self._store.try_to_write()
        except DatabaseAway as error:
            if not is_refusal(error):
                self._database.began(self, error)
                return False
        self._database.ended(self)
        return True
