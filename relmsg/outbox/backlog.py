"""What a person may ask of an outbox, and do to what is parked in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, DateTime, Select, Text, and_, case, cast, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.schema import tables
from relmsg.settings import schema_in_force

MOST_DESTINATIONS = 20
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


class Backlog:
    """Questions and decisions about an outbox, for the command line and for programs of the same kind.

    :raises DatabaseAway, SchemaError: never by itself; the errors of SQLAlchemy come through.
    """

    def __init__(self, engine: AsyncEngine, *, schema: str | None = None) -> None:
        self._engine = engine
        self._tables = tables(schema_in_force(schema))
        self._rows = self._tables.outbox_message

    async def status(self) -> dict[str, Any]:
        """How much waits, how long, where it is stuck, what is parked, and who relays.

        Counts every waiting row: on a backlog of millions this takes seconds.
        """
        row, slot, relay = self._rows, self._tables.outbox_slot, self._tables.outbox_relay
        now = func.clock_timestamp()
        waiting = row.c.parked_at.is_(None)
        counts = select(
            func.count().filter(waiting).label("waiting"),
            func.coalesce(func.extract("epoch", now - func.min(_readable(row.c.created_at)).filter(waiting)), 0).label(
                "oldest"
            ),
            func.count().filter(~waiting).label("parked"),
        )
        stuck = (
            select(row.c.exchange, row.c.routing_key, row.c.last_error.label("reason"), func.count().label("messages"))
            .where(waiting, row.c.last_error.is_not(None))
            .group_by(row.c.exchange, row.c.routing_key, row.c.last_error)
            .order_by(func.count().desc())
            .limit(MOST_DESTINATIONS)
        )
        relays = (
            select(relay.c.owner.label("relay"), func.count(slot.c.slot).label("slots"))
            .outerjoin(slot, and_(slot.c.owner == relay.c.owner, slot.c.expires_at > now))
            .where(relay.c.expires_at > now)
            .group_by(relay.c.owner)
            .order_by(relay.c.owner)
        )
        async with self._engine.connect() as connection:
            figures = (await connection.execute(counts)).one()
            held = [dict(each) for each in (await connection.execute(stuck)).mappings()]
            for each in held:
                each["messages"] = await connection.scalar(
                    select(func.count()).where(
                        waiting, row.c.exchange == each["exchange"], row.c.routing_key == each["routing_key"]
                    )
                )
            alive = [dict(each) for each in (await connection.execute(relays)).mappings()]
        return {
            "waiting": figures.waiting,
            "oldest_seconds": round(float(figures.oldest), 3),
            "parked": figures.parked,
            "held": held,
            "relays": alive,
        }

    async def rows(
        self,
        *,
        parked: bool | None = None,
        exchange: str | None = None,
        message_type: str | None = None,
        limit: int = 50,
    ) -> Sequence[Mapping[str, Any]]:
        """The oldest messages, without their bodies."""
        row = self._rows
        query = self._columns(with_body=False).order_by(row.c.id).limit(limit)
        if parked is not None:
            query = query.where(row.c.parked_at.is_not(None) if parked else row.c.parked_at.is_(None))
        if exchange is not None:
            query = query.where(row.c.exchange == exchange)
        if message_type is not None:
            query = query.where(row.c.type == message_type)
        async with self._engine.connect() as connection:
            return [dict(each) for each in (await connection.execute(query)).mappings()]

    async def show(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Everything about the rows of one row id or message id; a message id may stand in several rows."""
        async with self._engine.connect() as connection:
            query = self._columns(with_body=True).where(self._named([name])).order_by(self._rows.c.id)
            return [dict(each) for each in (await connection.execute(query)).mappings()]

    async def retry(
        self,
        names: Sequence[str] = (),
        *,
        every: bool = False,
        exchange: str | None = None,
        message_type: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """Bring parked messages back to the relay; returns how many.

        They keep their message ids and get new row ids: the relay finds them at once, and they come after what was
        published since. ``every`` takes all that are parked, the filters narrow it.
        """
        row = self._rows
        chosen: ColumnElement[bool] = row.c.parked_at.is_not(None)
        if not every:
            chosen = and_(chosen, self._named(names))
        if exchange is not None:
            chosen = and_(chosen, row.c.exchange == exchange)
        if message_type is not None:
            chosen = and_(chosen, row.c.type == message_type)
        async with self._engine.begin() as connection:
            if dry_run:
                return await connection.scalar(select(func.count()).where(chosen)) or 0
            kept = [
                column.name
                for column in row.columns
                if column.name not in ("id", "slot", "attempts", "last_error", "parked_at")
            ]
            back = row.delete().where(chosen).returning(row).cte("back")
            again = insert(row).from_select(kept, select(*(back.c[name] for name in kept)).order_by(back.c.id))
            return (await connection.execute(again.add_cte(back))).rowcount

    def _columns(self, *, with_body: bool) -> Select[Any]:
        row = self._rows
        state = case((row.c.parked_at.is_(None), "waiting"), else_="parked").label("state")
        shown = [
            _readable(column).label(column.name) if isinstance(column.type, DateTime) else column
            for column in row.columns
            if with_body or column.name not in ("body", "headers")
        ]
        return select(*shown, state, func.octet_length(row.c.body).label("bytes"))

    def _named(self, names: Sequence[str]) -> Any:
        row = self._rows
        ids = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 19]
        message_ids = [str(uuid) for name in names if (uuid := _uuid(name)) is not None]
        return or_(row.c.id.in_(ids), cast(row.c.message_id, Text).in_(message_ids))


def _readable(time: ColumnElement[Any]) -> ColumnElement[Any]:
    """A time, or the nearest one that Python knows: one row with another would fail the whole query."""
    return case((time.is_not(None), func.greatest(EARLIEST, func.least(LATEST, time))))


def _uuid(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None
