"""The table of half messages: what is said about one, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.arguments import MOST_BODY_BYTES
from relmsg.broker.envelope import Envelope, check
from relmsg.database import read_committed_sessions
from relmsg.db.contention import past_contention
from relmsg.db.deadline import answering
from relmsg.db.failures import brief, failure_kind, refuses_row
from relmsg.db.search_path import is_set_by_statement
from relmsg.errors import DatabaseAway
from relmsg.half import statements as sql
from relmsg.half.half import MILLISECOND, Half
from relmsg.half.protocol import Answer, Refusal
from relmsg.half.state import DECIDES, HalfState, Resolution
from relmsg.schema import DEFAULT_SCHEMA, quoted

ANSWER_SECONDS = 30.0


class Decided(NamedTuple):
    """How a half message stands after somebody said something about it. ``refusal`` tells why that did not count, and
    ``changed`` whether this time it has changed the row."""

    state: HalfState
    refusal: Refusal | None = None
    changed: bool = False


class DueCheck(NamedTuple):
    """A half message whose group is to be asked. ``is_out``: nobody has received the check before this one yet."""

    half_id: UUID
    group: str
    is_out: bool


class Parked(NamedTuple):
    """A half message that nobody could decide."""

    half_id: UUID
    group: str
    type: str | None
    checks: int
    last_answer: str | None


class Figures(NamedTuple):
    """How many half messages wait for a decision, how long the oldest does, and how many are parked."""

    open: int
    oldest_seconds: float
    parked: int


class HalfStore:
    """The table of half messages, as the coordinator sees it.

    :param check_after: and the other two: what holds for a half message that says nothing of its own.

    :raises DatabaseAway: from every method; the database is not there, or not fit to do it, or a setting or trigger
        stands in the way, and whether the statement took effect is unknown. Doing it again is right: each of them may
        be repeated.
    :raises DBAPIError: from the methods that are given a delivery's own values; PostgreSQL refuses those, and will
        always.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        schema: str = DEFAULT_SCHEMA,
        check_after: timedelta = timedelta(seconds=6),
        check_every: timedelta = timedelta(seconds=30),
        max_checks: int = 15,
    ) -> None:
        read_committed_sessions(engine)
        self._engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._names = {"half": quoted(schema, "half_message"), "outbox": quoted(schema, "outbox_message")}
        self._defaults = (check_after, check_every, max_checks)

    async def prepare(self, half: Half) -> Decided:
        """Keep a half message, once. A decision that came before it takes effect now.

        ANOTHER_GROUP with ``changed``: such a decision was dropped, for it was not the group's own. Without: the id is
        another half message's.
        """
        after, every, most = self._defaults
        times = (
            after if half.check_after is None else half.check_after,
            every if half.check_every is None else half.check_every,
            most if half.max_checks is None else half.max_checks,
        )
        found = await self._run_for(
            sql.PREPARE, half.half_id, half.group, half.user_id, *_columns(half.envelope), *times
        )
        if not found:
            decided = await self._standing(half.half_id, half.group, half.user_id)
            return decided or await self.prepare(half)
        state = HalfState(found[0].state)
        dropped = found[0].overtaken and state is HalfState.PREPARED
        return Decided(state, Refusal.ANOTHER_GROUP if dropped else None, changed=True)

    async def decide(
        self,
        half_id: UUID,
        resolution: Resolution,
        *,
        group: str,
        user_id: str | None,
        by: str,
        is_prepared: bool = False,
        check: int | None = None,
    ) -> Decided:
        """Commit or roll back, if it is still open; the state it has then.

        One that is not there is UNKNOWN, or, where its prepare is known to be on its way (``is_prepared``), decided as
        soon as that comes. ``check`` is the number of the check that this answers.
        """
        state, answer = DECIDES[resolution], None if check is None else resolution.value.lower()
        while True:
            if await self._run_for(sql.DECIDE, half_id, group, user_id, state.value, by, check or 0, answer):
                return Decided(state, changed=True)
            decided = await self._standing(half_id, group, user_id)
            if decided is None and is_prepared:
                if await self._run_for(sql.KEEP, half_id, group, user_id, state.value, by):
                    return Decided(state, changed=True)
                continue
            if decided is None:
                return Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)
            if decided.refusal is not None or decided.state.is_final:
                return decided

    async def refuse(self, half_id: UUID, *, group: str, user_id: str | None, by: str) -> None:
        """Have a half message that is not kept count as rolled back, so that its producer is told so. A row of this id
        that stands there is left alone: it may be somebody else's."""
        await self._run_for(sql.KEEP, half_id, group, user_id, HalfState.ROLLED_BACK.value, by)

    async def received(self, half_id: UUID, check: int, *, group: str, user_id: str | None) -> Decided:
        """A member of the group has this check."""
        if await self._run_for(sql.RECEIVED, half_id, group, user_id, check):
            return Decided(HalfState.PREPARED, changed=True)
        return await self._standing(half_id, group, user_id) or Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)

    async def answered(self, half_id: UUID, check: int, answer: Answer, *, group: str, user_id: str | None) -> Decided:
        """A member has answered this check. Only COMMIT and ROLLBACK decide, whatever the number of the check."""
        if answer in (Answer.COMMIT, Answer.ROLLBACK):
            resolution, by = Resolution(answer.name), f"checker {group}"
            return await self.decide(half_id, resolution, group=group, user_id=user_id, by=by, check=check)
        if await self._run_for(sql.UNKNOWN, half_id, group, user_id, check, answer.value):
            return Decided(HalfState.PREPARED, changed=True)
        return await self._standing(half_id, group, user_id) or Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)

    async def due(self, limit: int, but: Sequence[UUID] = ()) -> list[DueCheck]:
        """Half messages whose check is due, the longest overdue first. ``but``: leave these alone, here and below."""
        return [DueCheck(*each) for each in await self._run(sql.DUE, limit, list(but))]

    async def claim(
        self,
        half_ids: Sequence[UUID],
        spread: Sequence[float],
        unreadable: Callable[[UUID, Exception], None] = lambda _half_id, _error: None,
    ) -> list[tuple[Half, int]]:
        """Those that are still due and nobody else has claimed, with the number of the check to be sent now. The next
        one is due after the interval of each, times its ``spread``.

        ``unreadable`` is told of a row of which no half message can be made, since somebody else has written it.
        """
        claimed = []
        for each in await self._run(sql.CLAIM, list(half_ids), list(spread)):
            try:
                claimed.append((Half(_envelope(each), each.producer_group), each.check_sent))
            except Exception as error:  # noqa: BLE001 - of any kind: the others have to be checked
                unreadable(each.half_id, error)
        return claimed

    async def postpone(self, half_ids: Sequence[UUID], spread: Sequence[float], most: timedelta) -> None:
        """Have these due again after their interval, or after ``most`` if that is less."""
        await self._run(sql.POSTPONE, list(half_ids), list(spread), most)

    async def postpone_groups(
        self, groups: Sequence[str], most: timedelta, limit: int = 1000, but: Sequence[UUID] = ()
    ) -> None:
        """Have all due ones of these groups due again later, the ``limit`` longest overdue of them."""
        await self._run(sql.POSTPONE_GROUPS, list(groups), limit, list(but), most)

    async def of_groups(self, groups: Sequence[str], limit: int = 1000, but: Sequence[UUID] = ()) -> list[UUID]:
        """The half messages that ``postpone_groups`` would take."""
        return [each.half_id for each in await self._run(sql.OF_GROUPS, list(groups), limit, list(but))]

    async def park(self, limit: int = 1000, but: Sequence[UUID] = ()) -> list[Parked]:
        """Set aside those whose last check has passed without a decision."""
        return [Parked(*each) for each in await self._run(sql.PARK, limit, list(but))]

    async def to_park(self, limit: int = 1000, but: Sequence[UUID] = ()) -> list[UUID]:
        """The half messages that ``park`` would take."""
        return [each.half_id for each in await self._run(sql.TO_PARK, limit, list(but))]

    async def park_these(self, half_ids: Sequence[UUID]) -> list[Parked]:
        """Set these aside, as far as ``park`` may."""
        return [Parked(*each) for each in await self._run(sql.PARK_THESE, list(half_ids))]

    async def prune(self, older_than: timedelta, limit: int = 1000, but: Sequence[UUID] = ()) -> int:
        """Forget those that ended so long ago, at most ``limit``; how many they were."""
        return len(await self._run(sql.PRUNE, limit, older_than, list(but)))

    async def to_prune(self, older_than: timedelta, limit: int = 1000, but: Sequence[UUID] = ()) -> list[UUID]:
        """The half messages that ``prune`` would take."""
        return [each.half_id for each in await self._run(sql.TO_PRUNE, limit, older_than, list(but))]

    async def prune_these(self, half_ids: Sequence[UUID], older_than: timedelta) -> int:
        """Forget these, as far as ``prune`` may; how many they were."""
        return len(await self._run(sql.PRUNE_THESE, list(half_ids), older_than))

    async def try_to_write(self) -> None:
        """Write a row of no half message and roll it back: a ping would be answered by a server that is read-only."""
        values = (uuid4(), "relmsg: trial", None, HalfState.ROLLED_BACK.value, "relmsg: trial")
        await self._run(sql.KEEP, *values, keeps=False)

    async def figures(self) -> Figures:
        """What waits, and how long."""
        (found,) = await self._run(sql.FIGURES)
        return Figures(found.open, max(0.0, found.oldest), found.parked)

    async def _standing(self, half_id: UUID, group: str, user_id: str | None) -> Decided | None:
        """How it stands, and whether this group may speak about it; None if there is none."""
        found = await self._run_for(sql.LOOK, half_id)
        if not found:
            return None
        row = found[0]
        refusal = None
        if row.producer_group != group:
            refusal = Refusal.ANOTHER_GROUP
        elif row.user_id is not None and row.user_id != user_id:
            refusal = Refusal.ANOTHER_USER
        return Decided(HalfState(row.state), refusal)

    async def _run(self, statement: str, *values: object, keeps: bool = True) -> Sequence[Any]:
        """The rows of a statement that has no values of a delivery; rolled back unless it ``keeps``."""
        execute = self._execute if keeps else self._roll_back
        try:
            return await past_contention(lambda: execute(statement, values))
        except Exception as error:
            if failure_kind(error) is None or isinstance(error, DatabaseAway):
                raise
            raise DatabaseAway(brief(error)) from error

    async def _run_for(self, statement: str, *values: object) -> Sequence[Any]:
        """The rows of a statement with the values of a delivery, which PostgreSQL may refuse for their own sake."""
        try:
            return await past_contention(lambda: self._execute(statement, values))
        except DBAPIError as error:
            if refuses_row(error):
                raise
            raise DatabaseAway(brief(error)) from error
        except Exception as error:
            if failure_kind(error) is None or isinstance(error, DatabaseAway):
                raise
            raise DatabaseAway(brief(error)) from error

    async def _execute(self, statement: str, values: Sequence[object]) -> Sequence[Any]:
        opened = self._engine.begin() if is_set_by_statement(self._engine) else self._autocommit.connect()
        async with answering(ANSWER_SECONDS), opened as connection:
            result = await connection.exec_driver_sql(statement.format(**self._names), tuple(values))
            return result.all() if result.returns_rows else ()

    async def _roll_back(self, statement: str, values: Sequence[object]) -> Sequence[Any]:
        async with answering(ANSWER_SECONDS), self._engine.connect() as connection:
            await connection.exec_driver_sql(statement.format(**self._names), tuple(values))
            await connection.rollback()
        return ()


def _columns(envelope: Envelope) -> tuple[object, ...]:
    """The values of MESSAGE."""
    expiration = envelope.expiration_ms
    return (
        envelope.type,
        envelope.source,
        envelope.exchange,
        envelope.routing_key,
        envelope.ordering_key,
        msgspec.json.encode(envelope.headers).decode(),
        envelope.content_type,
        envelope.content_encoding,
        envelope.correlation_id,
        envelope.reply_to,
        envelope.body,
        envelope.timestamp,
        None if expiration is None else expiration * MILLISECOND,
    )


def _envelope(row: Any) -> Envelope:
    """The message of a row. :raises InvalidMessage: it could never be sent, and would end the connection of all."""
    envelope = Envelope(
        message_id=str(row.half_id),
        exchange=row.exchange,
        routing_key=row.routing_key,
        body=row.body,
        headers=msgspec.json.decode(row.headers),
        type=row.type,
        source=row.source,
        ordering_key=row.ordering_key,
        content_type=row.content_type,
        content_encoding=row.content_encoding,
        correlation_id=row.correlation_id,
        reply_to=row.reply_to,
        expiration_ms=None if row.expires_in_ms is None else round(row.expires_in_ms),
        timestamp=row.occurred_at,
    )
    check(envelope, max_body_bytes=MOST_BODY_BYTES)
    return envelope
