"""Group commit: several messages of one handler, handled one after another in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from relmsg.clock import Clock
from relmsg.db.deadline import answering
from relmsg.db.failures import brief, is_contention, may_concern_one
from relmsg.failpoint import reach
from relmsg.inbox.attempt import (
    LOSSES_TOGETHER,
    Task,
    asked,
    excused,
    idle_limit,
    is_elsewhere,
    judged,
    patience,
    proven,
)
from relmsg.inbox.call import Took, called, worked
from relmsg.inbox.deadline import Deadline
from relmsg.inbox.handle.internal_error import concerns_message
from relmsg.inbox.handler import Handler
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import Duplicate, Failed, Handled, Unsettled
from relmsg.inbox.store import New, Store
from relmsg.inbox.transaction import HandlersTurn, Opened
from relmsg.runtime.isolated import is_stop

log = logging.getLogger(__name__)

OVERRUN_SECONDS = 1.0
HANDLED, DUPLICATE = Handled(), Duplicate()


@dataclass(frozen=True, slots=True)
class Committed:
    """The group's transaction is committed.

    ``outcomes`` belong to its messages in order. None: the group was closed early, because its handlers took long; the
    message is as if it had not been in it.
    """

    outcomes: list[Handled | Duplicate | None]
    took: Took | None
    """None where all messages were duplicates."""


class Groups:
    """Handles groups: one transaction, one statement for all inbox rows, the handlers, one commit.

    The session is shared, and each handler finds it empty: what it has written is flushed and let go before the next
    one begins.
    """

    def __init__(self, sessions: async_sessionmaker[Any], store: Store, metrics: Metrics, clock: Clock) -> None:
        self._sessions = sessions
        self._store = store
        self._metrics = metrics
        self._clock = clock

    async def once(self, handler: Handler, tasks: Sequence[Task]) -> Committed | Failed | Unsettled:
        """Handle the messages, each that is new once. If it is not Committed, nothing of it is.

        Failed: something went wrong, and nobody knows yet in which message. Unsettled: the database's trouble.
        """
        try:
            async with Opened(self._sessions) as session:
                outcome = await self._transaction(handler, tasks, session)
        except BaseException as error:  # our own statements: no message has a part in it
            if is_stop(error):
                raise
            if is_contention(error) or may_concern_one(error) or concerns_message(error):
                return Failed(error, "handler_failed")  # alone it is seen with which message
            return Unsettled(error)
        if isinstance(outcome, Committed):
            reach("consumer.after_commit")
        return await excused(outcome, self._sessions, tasks[0].silent) if isinstance(outcome, Failed) else outcome

    async def _transaction(
        self, handler: Handler, tasks: Sequence[Task], session: AsyncSession
    ) -> Committed | Failed | Unsettled:
        async with answering(patience(handler)):
            transaction, connection, began, new = await session.run_sync(self._begin, tasks)
            if not new.identities:
                await session.run_sync(lambda _: transaction.commit())
                return Committed([DUPLICATE] * len(tasks), None)
        self._store.taken_at = began
        fresh = _first_of_each(tasks, new.identities)
        called_at = self._clock.monotonic()
        tasks[0].silent = False
        ask = partial(asked, self._sessions)
        with HandlersTurn(session, transaction, connection) as turn, Deadline(handler.timeout, ask) as deadline:
            done, error = await self._handlers(handler, fresh, session, turn, deadline)
            if error is None and turn.is_lent:
                error = await proven(handler, turn)
            elsewhere = error is not None and await is_elsewhere(error, handler, turn)
        tasks[0].silent = deadline.was_silent
        ended_at = self._clock.monotonic()
        if error is None:
            reach("consumer.before_commit")
            left = {task.identity for task in fresh[done:]}
            try:
                async with answering(patience(handler)):
                    if left:
                        await session.run_sync(self._forget, left, new.written_by)
                    await session.run_sync(lambda _: transaction.commit())
            except BaseException as failed:  # a deferred constraint, or the connection is lost
                if is_stop(failed):
                    raise
                error = failed
            else:
                took = Took(ended_at - called_at, self._clock.monotonic() - ended_at + called_at - began)
                return Committed(_outcomes(tasks, new.identities, left), took)
        elif turn.was_ended_unseen():
            await session.close()
            await self._take_back(new, fresh[done:])
        outcome = judged(error, turn)
        if isinstance(outcome, Unsettled) and turn.is_gone():
            for task in fresh:
                task.losses += 1
            if turn.is_lost() or fresh[0].losses >= LOSSES_TOGETHER:  # alone it is told whether a message did it
                return Failed(outcome.cause, "connection_lost")
        elif isinstance(outcome, Unsettled) and elsewhere:
            return Failed(outcome.cause, "handler_failed")
        return outcome

    def _begin(self, session: Session, tasks: Sequence[Task]) -> tuple[SessionTransaction, Connection, float, New]:
        transaction, connection = session.begin(), session.connection()
        reach("consumer.before_inbox_row")
        began = self._clock.monotonic()
        identities = [task.identity for task in tasks]
        new = self._store.once_each(connection, identities, idle_limit(tasks[0].handler))
        return transaction, connection, began, new

    def _forget(self, session: Session, identities: Collection[Identity], written_by: str) -> None:
        self._store.forget_each(session.connection(), identities, written_by)

    async def _handlers(
        self, handler: Handler, fresh: list[Task], session: AsyncSession, turn: HandlersTurn, deadline: Deadline
    ) -> tuple[int, BaseException | None]:
        """Run them one after another, or once for all; how many have been handled, and the error that ended it."""
        if handler.takes_lists:
            messages, events = [each.message for each in fresh], [each.event for each in fresh]
            work = worked(handler.call, turn, messages, session, events)
            error = await called(handler, work, copy_context(), turn, deadline, self._metrics)
            reach("consumer.inside_group")
            return (len(fresh) if error is None else 0), error
        enough = self._clock.monotonic() + OVERRUN_SECONDS
        for done, task in enumerate(fresh):
            if done and self._clock.monotonic() > enough:
                return done, None
            work = worked(handler, turn, task.message, session, task.event)
            error = await called(handler, work, copy_context(), turn, deadline, self._metrics)
            if error is not None:
                return done, error
            if turn.was_checked:
                session.expunge_all()
                turn.was_checked = False
            if done + 1 == (len(fresh) + 1) // 2:
                reach("consumer.inside_group")
        return len(fresh), None

    async def _take_back(self, new: New, unhandled: list[Task]) -> None:
        """A handler has sent a COMMIT past SQLAlchemy, and with it went inbox rows of messages that nobody has handled:
        they would be taken for duplicates."""
        identities = [task.identity for task in unhandled]
        try:
            async with answering(patience(unhandled[0].handler)), self._sessions() as session, session.begin():
                await session.run_sync(self._forget, identities, new.written_by)
        except Exception as error:  # noqa: BLE001 - nothing is left to be done but to tell it
            log.error(
                "a handler has sent a COMMIT past SQLAlchemy; these messages are remembered as handled and may not be: "
                "%s (%s)",
                ", ".join(identity.message_id for identity in identities),
                brief(error),
            )


def _first_of_each(tasks: Sequence[Task], new: set[Identity]) -> list[Task]:
    """The messages to be handled, in their order: of copies of one message the first."""
    if len(new) == len(tasks):  # no copies, and all are new
        return list(tasks)
    missing, first = set(new), []
    for task in tasks:
        if task.identity in missing:
            missing.discard(task.identity)
            first.append(task)
    return first


def _outcomes(tasks: Sequence[Task], new: set[Identity], left: set[Identity]) -> list[Handled | Duplicate | None]:
    if not left and len(new) == len(tasks):
        return [HANDLED] * len(tasks)
    missing = set(new)
    outcomes: list[Handled | Duplicate | None] = []
    for task in tasks:
        identity = task.identity
        if identity in left:
            outcomes.append(None)
        elif identity in missing:
            missing.discard(identity)
            outcomes.append(HANDLED)
        else:
            outcomes.append(DUPLICATE)
    return outcomes
