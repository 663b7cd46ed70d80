"""What a person may ask about half messages, and decide where no checker can."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Update, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from relmsg import arguments
from relmsg.db.readable import readable_time, seconds, shown, with_headers
from relmsg.errors import HalfUnknown, UsageError
from relmsg.half.state import DECIDES, OPEN, HalfState, Resolution
from relmsg.half.statements import MESSAGE
from relmsg.schema import tables
from relmsg.settings import schema_in_force

MAX_NAME_BYTES = 128

KEPT = [name for name in MESSAGE if name != "expires_in"]


class Standing(NamedTuple):
    """How a half message stands after something was asked of it, and whether that has changed anything."""

    half_id: UUID
    state: HalfState
    changed: bool
    decided_by: str | None
    decided_at: datetime | None


def half_uuid(name: UUID | str) -> UUID:
    """The id of a half message as the table has it.

    :raises UsageError: it is not a UUID.
    """
    try:
        return name if isinstance(name, UUID) else UUID(name)
    except (ValueError, AttributeError, TypeError):
        raise UsageError(f"{arguments.shown(name)} is no id of a half message: give the message's id, a UUID") from None


class Desk:
    """Questions and decisions about half messages, for the command line and for programs of the same kind.

    A decision counts only while the half message is open, PREPARED or PARKED, by the same compare-and-set that the
    coordinator uses: whoever comes first decides, all that come later are told. Who decided, and when by the
    database's clock, stands in the row. The errors of SQLAlchemy come through.
    """

    def __init__(self, engine: AsyncEngine, *, schema: str | None = None) -> None:
        self._engine = engine
        self._half = tables(schema_in_force(schema)).half_message
        self._outbox = tables(schema_in_force(schema)).outbox_message

    async def rows(
        self,
        *,
        states: Collection[HalfState] = OPEN,
        group: str | None = None,
        message_type: str | None = None,
        limit: int = 50,
    ) -> Sequence[Mapping[str, Any]]:
        """The oldest half messages in these states, without headers and bodies. ``age`` and spans are seconds; a text
        of more than 2,000 characters is cut."""
        half = self._half
        query = (
            self._columns(without=("headers", "body"))
            # One comparison a state, not IN: only so can PostgreSQL use the partial indexes of the open ones.
            .where(or_(*(half.c.state == state for state in states)), *self._filters(group, message_type))
            .order_by(half.c.created_at, half.c.half_id)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [dict(each) for each in (await connection.execute(query)).mappings()]

    async def show(self, half_id: UUID | str) -> Mapping[str, Any]:
        """Everything about one half message. Headers that are nested deeper than 200 levels are the text of their JSON.

        :raises HalfUnknown: there is none with this id.
        """
        half = self._half
        async with self._engine.connect() as connection:
            found = await connection.execute(self._columns().where(half.c.half_id == half_uuid(half_id)))
            row = found.mappings().one_or_none()
        if row is None:
            raise _unknown(half_id)
        return with_headers(row)

    async def decide(self, half_id: UUID | str, resolution: Resolution, by: str) -> Standing:
        """Commit or roll back an open half message in the name of ``operator BY``. Again, or too late, it changes
        nothing, and says how the half message has ended.

        :raises HalfUnknown: there is none with this id.
        :raises UsageError: ``resolution`` is UNKNOWN, which decides nothing, or ``by`` is not a name.
        """
        if resolution not in DECIDES:
            raise UsageError(f"an operator decides {' or '.join(DECIDES)}, not {resolution}")
        half = self._half
        state = DECIDES[resolution]
        ended = (
            update(half)
            .where(half.c.half_id == half_uuid(half_id), half.c.state.in_(OPEN))
            .values(state=state, next_check_at=None, **_decided(by))
        )
        async with self._engine.begin() as connection:
            if state is HalfState.COMMITTED:
                changed = await self._send(connection, ended)
            else:
                changed = (await connection.execute(ended)).rowcount
            return await self._standing(connection, half_id, changed=bool(changed))

    async def resume(self, half_id: UUID | str, by: str) -> Standing:
        """Have a parked half message checked again, from the first check on and at once, in the name of
        ``operator BY``. One that is not parked stays as it is.

        :raises HalfUnknown: there is none with this id.
        :raises UsageError: ``by`` is not a name.
        """
        async with self._engine.begin() as connection:
            resumed = await connection.execute(self._resumed(by).where(self._half.c.half_id == half_uuid(half_id)))
            return await self._standing(connection, half_id, changed=bool(resumed.rowcount))

    async def resume_all(
        self, by: str, *, group: str | None = None, message_type: str | None = None, dry_run: bool = False
    ) -> int:
        """Resume all that are parked and match; how many. The checks go out at the coordinators' usual rate.

        :raises UsageError: ``by`` is not a name.
        """
        half = self._half
        filters = self._filters(group, message_type)
        async with self._engine.begin() as connection:
            if dry_run:
                parked = select(func.count()).select_from(half).where(half.c.state == HalfState.PARKED, *filters)
                return await connection.scalar(parked) or 0
            return (await connection.execute(self._resumed(by).where(*filters))).rowcount

    async def _send(self, connection: AsyncConnection, ended: Update) -> int:
        """The change of state and the row in the outbox: one statement, so there is never one without the other."""
        half, outbox = self._half, self._outbox
        came = ended.returning(half).cte("came")
        columns = [came.c.half_id, *(came.c[name] for name in KEPT), func.clock_timestamp() + came.c.expires_in]
        into = insert(outbox).from_select(["message_id", *KEPT, "expires_at"], select(*columns))
        return (await connection.execute(into.add_cte(came))).rowcount

    def _resumed(self, by: str) -> Update:
        half = self._half
        values = {"state": HalfState.PREPARED, "checks": 0, "next_check_at": func.clock_timestamp(), **_decided(by)}
        return update(half).where(half.c.state == HalfState.PARKED).values(**values)

    async def _standing(self, connection: AsyncConnection, half_id: UUID | str, *, changed: bool) -> Standing:
        # A statement of its own: it sees what another session has committed while ours waited for the row.
        half = self._half
        query = select(half.c.half_id, half.c.state, half.c.decided_by, shown(half.c.decided_at, whole=True))
        row = (await connection.execute(query.where(half.c.half_id == half_uuid(half_id)))).one_or_none()
        if row is None:
            raise _unknown(half_id)
        return Standing(row.half_id, HalfState(row.state), changed, row.decided_by, row.decided_at)

    def _columns(self, *, without: Collection[str] = ()) -> Select[Any]:
        half = self._half
        columns = [shown(column, whole=not without) for column in half.columns if column.name not in without]
        age = seconds(func.clock_timestamp() - readable_time(half.c.created_at))
        return select(*columns, age.label("age"), func.octet_length(half.c.body).label("bytes"))

    def _filters(self, group: str | None, message_type: str | None) -> list[ColumnElement[bool]]:
        half = self._half
        given = ((half.c.producer_group, group), (half.c.type, message_type))
        return [column == value for column, value in given if value is not None]


def _decided(by: str) -> dict[str, Any]:
    if not by.strip() or not by.isprintable() or len(by.encode()) > MAX_NAME_BYTES:
        raise UsageError(f"who decides is a name of 1 to {MAX_NAME_BYTES} printable bytes, not {arguments.shown(by)}")
    return {"decided_by": f"operator {by}", "decided_at": func.clock_timestamp()}


def _unknown(half_id: UUID | str) -> HalfUnknown:
    return HalfUnknown(f"no half message {half_id}: it was never prepared, or was decided and pruned")
