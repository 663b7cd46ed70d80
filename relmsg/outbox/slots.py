"""Slots: how relays share the outbox without double work.

Every slot has at most one owner, by a lease that runs on the database's clock. A relay may send the rows of a slot only
while its lease lasts; how long that is, it counts on its own monotonic clock from *before* it asked, so that it always
stops earlier than the database would say.
"""

from __future__ import annotations

from collections.abc import Iterable

from relmsg.clock import Clock
from relmsg.errors import DatabaseAway
from relmsg.outbox.driver import Driver
from relmsg.schema import SLOTS, quoted

# enlist: say that this relay is alive, and forget those that have not said so in time.
ENLIST = """
WITH gone AS (DELETE FROM {outbox_relay} WHERE expires_at <= clock_timestamp() AND owner <> $1)
INSERT INTO {outbox_relay} (owner, expires_at) VALUES ($1, clock_timestamp() + $2 * interval '1 second')
ON CONFLICT (owner) DO UPDATE SET expires_at = excluded.expires_at
"""

# renew: an owner keeps what nobody has taken from it; taking a slot changes its owner, so the name is proof enough.
RENEW = """
UPDATE {outbox_slot} SET expires_at = clock_timestamp() + $2 * interval '1 second' WHERE owner = $1 RETURNING slot
"""

# count: the relays alive, this one among them.
COUNT = "SELECT count(*) AS relays FROM {outbox_relay} WHERE expires_at > clock_timestamp()"

# take: free and expired slots. ARRAY() settles the limit before the update joins: as a plain IN, a nested-loop plan may
# run the subquery anew for every row and take more than asked for (reliability D7).
TAKE = """
UPDATE {outbox_slot} SET owner = $1, epoch = epoch + 1, expires_at = clock_timestamp() + $2 * interval '1 second'
 WHERE slot = ANY (ARRAY(SELECT slot FROM {outbox_slot}
                          WHERE owner IS NULL OR expires_at <= clock_timestamp()
                          ORDER BY slot LIMIT $3 FOR UPDATE SKIP LOCKED))
RETURNING slot
"""

# release: only what is still ours.
RELEASE = "UPDATE {outbox_slot} SET owner = NULL, expires_at = NULL WHERE owner = $1 AND slot = ANY ($2::smallint[])"

RESIGN = "DELETE FROM {outbox_relay} WHERE owner = $1"


class Slots:
    """The slots this relay owns.

    Fair share: with n relays alive, each owns at most ceil(64 / n). ``keep`` is called well within the lease; it
    renews, takes what is free, and names what has to be given up. Those slots stay ours, and so do their rows at the
    broker, until ``release``.
    """

    def __init__(self, driver: Driver, *, schema: str, owner: str, lease: float, renew: float, clock: Clock) -> None:
        names = {table: quoted(schema, table) for table in ("outbox_slot", "outbox_relay")}
        self._sql = {
            name: statement.format(**names)
            for name, statement in {
                "enlist": ENLIST,
                "renew": RENEW,
                "count": COUNT,
                "take": TAKE,
                "release": RELEASE,
                "resign": RESIGN,
            }.items()
        }
        self.owner = owner
        self._driver = driver
        self._lease = lease
        self._renew = renew
        self._clock = clock
        self._owned: set[int] = set()
        self._until = 0.0

    @property
    def owned(self) -> frozenset[int]:
        """The slots whose rows may be sent now; none when the lease could not be renewed in time."""
        return frozenset(self._owned) if self._clock.monotonic() < self._until else frozenset()

    async def keep(self) -> frozenset[int]:
        """Renew when it is time, take what is free; returns the slots that should be given up.

        :raises DatabaseAway: nothing is known; the lease goes on until its end.
        """
        asked = self._clock.monotonic()
        if asked >= self._until - self._lease + self._renew:
            await self._driver.fetch(self._sql["enlist"], self.owner, self._lease)
            renewed = await self._driver.fetch(self._sql["renew"], self.owner, self._lease)
            self._owned = {record["slot"] for record in renewed}
            self._until = asked + self._lease
        relays = (await self._driver.fetch(self._sql["count"]))[0]["relays"]
        share = -(-SLOTS // max(1, relays))
        if len(self._owned) < share:
            taken = await self._driver.fetch(self._sql["take"], self.owner, self._lease, share - len(self._owned))
            self._owned |= {record["slot"] for record in taken}
        return frozenset(sorted(self._owned)[share:])

    async def release(self, slots: Iterable[int]) -> None:
        """Give slots back; nothing of them may be at the broker any more."""
        gone = set(slots)
        kept, self._owned = self._owned & gone, self._owned - gone
        try:
            await self._driver.fetch(self._sql["release"], self.owner, sorted(gone))
        except DatabaseAway:
            self._owned |= kept  # still ours, and to be given back
            raise

    async def resign(self) -> None:
        """Give everything back and leave."""
        await self.release(set(self._owned))
        await self._driver.fetch(self._sql["resign"], self.owner)
