"""What a person may ask of an outbox, and do to what is parked in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Select, Table, Text, and_, case, func, null, select, union_all
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.db.readable import listed, readable_time, shown, with_headers
from relmsg.outbox.changes import Changes, Chosen, Done, named
from relmsg.outbox.holds import WHOLE_EXCHANGE
from relmsg.schema import tables
from relmsg.settings import schema_in_force

MOST_DESTINATIONS = 20


class Backlog:
    """Questions and decisions about an outbox, for the command line and for programs of the same kind.

    :raises DatabaseAway, SchemaError: never by itself; the errors of SQLAlchemy come through.
    """

    def __init__(self, engine: AsyncEngine, *, schema: str | None = None) -> None:
        self._engine = engine
        self.schema = schema_in_force(schema)
        self._tables = tables(self.schema)
        self._rows = self._tables.outbox_message

    @property
    def engine(self) -> AsyncEngine:
        """The engine on the outbox's database."""
        return self._engine

    @property
    def changes(self) -> Changes:
        """What may be done to chosen rows."""
        return Changes(self._engine, self._rows)

    async def status(self, *, destinations: int = MOST_DESTINATIONS) -> dict[str, Any]:
        """How much waits, how long, where it is stuck, what is parked, and who relays.

        ``held`` has the destinations for which most messages wait, at most so many; the ``routing_key`` of one that is
        a whole exchange is None. ``held_destinations`` and ``held_messages`` count all of them. Counts every waiting
        row: on a backlog of millions this takes seconds.
        """
        row, slot, relay = self._rows, self._tables.outbox_slot, self._tables.outbox_relay
        now = func.clock_timestamp()
        waiting = row.c.parked_at.is_(None)
        oldest = func.extract("epoch", now - func.min(readable_time(row.c.created_at)).filter(waiting))
        counts = select(
            func.count().filter(waiting).label("waiting"),
            func.coalesce(oldest, 0).label("oldest"),
            func.count().filter(~waiting).label("parked"),
        )
        held_ones = _held(row, destinations)
        relays = (
            select(listed(relay.c.owner).label("relay"), func.count(slot.c.slot).label("slots"))
            .outerjoin(slot, and_(slot.c.owner == relay.c.owner, slot.c.expires_at > now))
            .where(relay.c.expires_at > now)
            .group_by(relay.c.owner)
            .order_by(relay.c.owner)
        )
        async with self._engine.connect() as connection:
            figures = (await connection.execute(counts)).one()
            held = (await connection.execute(held_ones)).mappings().all()
            alive = [dict(each) for each in (await connection.execute(relays)).mappings()]
        told = ("exchange", "routing_key", "reason", "messages")
        return {
            "waiting": figures.waiting,
            "oldest_seconds": round(float(figures.oldest), 3),
            "parked": figures.parked,
            "held_destinations": held[0]["destinations"] if held else 0,
            "held_messages": int(held[0]["all_messages"]) if held else 0,
            "held": [{name: each[name] for name in told} for each in held],
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
        """The oldest messages, without headers and bodies; a text of more than 2,000 characters is cut."""
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
        """Everything about the rows of one row id or message id; a message id may stand in several rows.

        Headers that are nested deeper than 200 levels are the text of their JSON.
        """
        async with self._engine.connect() as connection:
            query = self._columns(with_body=True).where(named(self._rows, [name])).order_by(self._rows.c.id)
            return [with_headers(each) for each in (await connection.execute(query)).mappings()]

    async def retry(
        self,
        names: Sequence[str] = (),
        *,
        every: bool = False,
        exchange: str | None = None,
        message_type: str | None = None,
        dry_run: bool = False,
        done: Done = lambda _: None,
    ) -> int:
        """Bring parked messages back to the relay; returns how many.

        They keep their message ids and get new row ids: the relay finds them at once, and they come after what was
        published since. ``every`` takes all that are parked, the filters narrow it. ``done`` is told after each batch
        how many it had.
        """
        chosen = Chosen(names=() if every else names, exchange=exchange, message_type=message_type, parked=True)
        if not every and not names:
            return 0
        changes = self.changes
        return await changes.count(chosen) if dry_run else await changes.retry(chosen, done)

    def _columns(self, *, with_body: bool) -> Select[Any]:
        row = self._rows
        state = case((row.c.parked_at.is_(None), "waiting"), else_="parked").label("state")
        columns = [
            shown(column, whole=with_body)
            for column in row.columns
            if with_body or column.name not in ("body", "headers")
        ]
        return select(*columns, state, func.octet_length(row.c.body).label("bytes"))


def _held(row: Table, most: int) -> Select[Any]:
    """The destinations for which most messages wait, with how many there are in all.

    A destination may have several reasons, one a probe: it stands here once, with the latest of them. Where one says
    that the whole exchange waits, all its routing keys are one destination.
    """
    waiting = row.c.parked_at.is_(None)
    whole = row.c.last_error.startswith(WHOLE_EXCHANGE, autoescape=True)
    latest = func.array_agg(aggregate_order_by(row.c.last_error, row.c.id.desc()), type_=ARRAY(Text))[1]
    exchanges = (
        select(row.c.exchange, latest.label("reason")).where(waiting, whole).group_by(row.c.exchange).cte("exchanges")
    )
    keys = (
        select(row.c.exchange, row.c.routing_key, latest.label("reason"))
        .where(waiting, row.c.last_error.is_not(None), row.c.exchange.not_in(select(exchanges.c.exchange)))
        .group_by(row.c.exchange, row.c.routing_key)
        .cte("keys")
    )
    no_key = null().cast(Text)
    each = union_all(
        select(exchanges.c.exchange, no_key.label("routing_key"), exchanges.c.reason, func.count().label("n"))
        .join(row, row.c.exchange == exchanges.c.exchange)
        .where(waiting)
        .group_by(exchanges.c.exchange, exchanges.c.reason),
        select(keys.c.exchange, keys.c.routing_key, keys.c.reason, func.count())
        .join(row, and_(row.c.exchange == keys.c.exchange, row.c.routing_key == keys.c.routing_key))
        .where(waiting)
        .group_by(keys.c.exchange, keys.c.routing_key, keys.c.reason),
    ).subquery("held")
    return (
        select(
            *(listed(each.c[name]).label(name) for name in ("exchange", "routing_key", "reason")),
            each.c.n.label("messages"),
            func.count().over().label("destinations"),
            func.sum(each.c.n).over().label("all_messages"),
        )
        .order_by(each.c.n.desc(), each.c.exchange, each.c.routing_key)
        .limit(most)
    )
