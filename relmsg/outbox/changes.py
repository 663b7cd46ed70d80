"""What an operator does to rows of the outbox: retry, redirect, park, drop. In batches, oldest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, Table, Text, and_, case, cast, delete, func, insert, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.dml import UpdateBase

BATCH = 1000  # rows in one transaction: their locks, for which a relay's delete may wait, are held for milliseconds
LOWEST_ID = -(2**63)

Done: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which rows are meant: those to which everything given applies. ``names`` are row ids and message ids."""

    names: Sequence[str] = ()
    exchange: str | None = None
    routing_key: str | None = None
    message_type: str | None = None
    parked: bool | None = None
    created_before: datetime | None = None

    def condition(self, row: Table) -> ColumnElement[bool]:
        """The condition on the table of the outbox."""
        conditions: list[ColumnElement[bool]] = [named(row, self.names)] if self.names else []
        if self.parked is not None:
            conditions.append(row.c.parked_at.is_not(None) if self.parked else row.c.parked_at.is_(None))
        if self.created_before is not None:
            conditions.append(row.c.created_at < self.created_before)
        given = {"exchange": self.exchange, "routing_key": self.routing_key, "type": self.message_type}
        conditions += [row.c[name] == value for name, value in given.items() if value is not None]
        return and_(true(), *conditions)


def named(row: Table, names: Sequence[str]) -> ColumnElement[bool]:
    """The condition that a row has one of these row ids or message ids."""
    ids = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 19]
    message_ids = [str(uuid) for name in names if (uuid := _uuid(name)) is not None]
    return or_(row.c.id.in_(ids), cast(row.c.message_id, Text).in_(message_ids))


class Changes:
    """Changes of chosen rows, 1000 in a transaction; rows that are written after the change began stay as they are.

    An error in the middle leaves whole batches done, of which ``done`` was told; doing it again does the rest. A relay
    may have a row in its hands already: that one is still sent to where it was meant. The errors of SQLAlchemy come
    through.
    """

    def __init__(self, engine: AsyncEngine, row: Table) -> None:
        # A relay deletes rows meanwhile: under a stricter default of the database that would end the change.
        self._engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._row = row

    async def count(self, chosen: Chosen) -> int:
        """How many rows are meant."""
        counted = select(func.count()).select_from(self._row).where(chosen.condition(self._row))
        async with self._engine.connect() as connection:
            return await connection.scalar(counted) or 0

    async def retry(self, chosen: Chosen, done: Done) -> int:
        """Bring rows back to the relay under new row ids: it finds them at once, behind what was published since."""
        row = self._row
        anew = ("id", "slot", "attempts", "last_error", "parked_at")
        kept = [column.name for column in row.columns if column.name not in anew]

        def again(ids: Sequence[int]) -> UpdateBase:
            back = delete(row).where(row.c.id.in_(ids)).returning(row).cte("back")
            moved = insert(row).from_select(kept, select(*(back.c[name] for name in kept)).order_by(back.c.id))
            return moved.add_cte(back)

        return await self._each_batch(chosen, again, done)

    async def redirect(self, chosen: Chosen, *, exchange: str | None, routing_key: str | None, done: Done) -> int:
        """Give rows another destination; None keeps the row's own. They keep their ids, and with them their order."""
        row = self._row
        destination = {"exchange": exchange, "routing_key": routing_key}
        values = {name: value for name, value in destination.items() if value is not None}
        # A waiting row has its reason from the old destination, a parked one has the reason why it is parked.
        reason = case((row.c.parked_at.is_not(None), row.c.last_error))

        def moved(ids: Sequence[int]) -> UpdateBase:
            return update(row).where(row.c.id.in_(ids)).values(**values, last_error=reason)

        return await self._each_batch(chosen, moved, done)

    async def park(self, chosen: Chosen, reason: str, done: Done) -> int:
        """Set rows aside, with this reason."""
        values = {"parked_at": func.clock_timestamp(), "last_error": reason}
        row = self._row
        return await self._each_batch(chosen, lambda ids: update(row).where(row.c.id.in_(ids)).values(**values), done)

    async def drop(self, chosen: Chosen, done: Done) -> int:
        """Delete rows."""
        row = self._row
        return await self._each_batch(chosen, lambda ids: delete(row).where(row.c.id.in_(ids)), done)

    async def _each_batch(self, chosen: Chosen, change: Callable[[Sequence[int]], UpdateBase], done: Done) -> int:
        row = self._row
        async with self._engine.connect() as connection:
            last = await connection.scalar(select(func.max(row.c.id)))
        reached, changed = LOWEST_ID, 0
        while last is not None:
            batch = (
                select(row.c.id)
                .where(chosen.condition(row), row.c.id > reached, row.c.id <= last)
                .order_by(row.c.id)
                .limit(BATCH)
                .with_for_update()
            )
            async with self._engine.begin() as connection:
                ids = (await connection.scalars(batch)).all()
                if not ids:
                    break
                count = (await connection.execute(change(ids))).rowcount
            reached = ids[-1]
            changed += count
            done(count)
        return changed


def _uuid(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None
