"""One message, handled: retry( transaction( once( handler ) ) )."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from relmsg.clock import Clock
from relmsg.db.deadline import answering
from relmsg.db.failures import is_away, is_contention, named
from relmsg.exceptions import type_name
from relmsg.failpoint import reach
from relmsg.inbox.call import Took, called
from relmsg.inbox.deadline import Deadline
from relmsg.inbox.gate import Gate
from relmsg.inbox.handler import Handler
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import (
    REASONS,
    DeliveryGone,
    Duplicate,
    Failed,
    Handled,
    Outcome,
    Settled,
    Unsettled,
)
from relmsg.inbox.rest import Rest
from relmsg.inbox.store import Store
from relmsg.inbox.transaction import HandlersTurn, Opened
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.runtime.isolated import is_stop, isolated
from relmsg.security.encryption import is_secret

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
PATIENCE_SECONDS = 3600.0  # for the copies of a message whose handler has no timeout


@dataclass(slots=True)
class Task:
    """A message, the handler it goes to, and what the handler will be given."""

    handler: Handler
    message: Message
    identity: Identity
    event: Any
    counted: bool = False
    """Whether a start of this message is recorded, and has to be forgotten once it has an end."""
    took: Took | None = None
    """What its last attempt took, once it is committed."""


Around: TypeAlias = Callable[[Callable[[], Awaitable[Outcome]]], Awaitable[Outcome]]
"""Makes an attempt, and does something before and after it."""


class Attempts:
    """Handles messages: each attempt is a transaction of its own, and the retry stands around the whole of it."""

    def __init__(
        self,
        sessions: async_sessionmaker[Any],
        store: Store,
        gate: Gate,
        metrics: Metrics,
        rest: Rest,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._gate = gate
        self._metrics = metrics
        self._rest = rest
        self._clock = clock
        self._chance = chance

    async def handle(self, task: Task, around: Around, wanted: Callable[[], bool] = lambda: True) -> Outcome:
        """Try until the message is handled, or its retries are spent, or it is not ``wanted`` any more.

        ``around`` is what each attempt is made in, such as a free slot. Where the database is away, no attempt is
        spent, and the time until it is back is not counted against the budget.
        """
        retry = task.handler.retry
        spent = began = 0.0

        async def attempt_once() -> Outcome:
            nonlocal began
            began = self._clock.monotonic()
            return await self.once(task)

        async def once() -> Outcome:
            return await around(attempt_once)

        attempt = 0
        while True:
            attempt += 1
            outcome: Settled | None = await self._gate.until_settled(once, wanted)
            if outcome is None:
                return Unsettled(DeliveryGone())
            if isinstance(outcome, Handled):
                return replace(outcome, attempts=attempt)
            if not isinstance(outcome, Failed):
                return outcome
            spent += self._clock.monotonic() - began
            delay = _policy(retry, outcome.error).delay(attempt, outcome.error, spent, self._chance)
            if delay is None:
                return replace(outcome, attempts=attempt)
            self._metrics.retried(task.handler)
            log.info(
                "message %s (%s): attempt %d failed, the next in %.2f s: %s",
                task.identity.message_id,
                task.message.type,
                attempt,
                delay,
                type_name(outcome.error) if is_secret(task.message.headers, outcome.error) else named(outcome.error),
            )
            await self._rest.sleep(self._clock, delay)
            spent += delay

    async def once(self, task: Task) -> Outcome:
        """One attempt, in one transaction: the inbox row, the handler's writes, our commit.

        Any failure of *our* statements is the database's trouble: Unsettled. So is a lost connection while the handler
        runs or while we commit; that commit may have happened, and then the next attempt is a Duplicate.
        """
        try:
            async with Opened(self._sessions) as session:
                outcome = await self._transaction(task, session)
        except BaseException as error:  # whatever it is, the message has no part in it
            if is_stop(error):
                raise
            return Failed(error, "handler_failed") if is_contention(error) else Unsettled(error)
        if isinstance(outcome, Handled):
            reach("consumer.after_commit")
        return outcome

    async def _transaction(self, task: Task, session: AsyncSession) -> Outcome:
        async with answering(patience(task.handler)):
            transaction, connection, began, is_first = await session.run_sync(self._begin, task.identity)
        if not is_first:
            await self._commit(task, session, transaction)
            return Duplicate()
        called_at = self._clock.monotonic()
        context = copy_context()
        with HandlersTurn(session, transaction, connection) as turn, Deadline(task.handler.timeout) as deadline:
            call = partial(task.handler, task.message, session, task.event)
            error = await called(task.handler, call, context, turn, deadline, self._metrics)
            if error is None and turn.is_lent:
                error = await proven(task.handler, turn)
        ended_at = self._clock.monotonic()
        if error is None:
            reach("consumer.before_commit")
            error = await isolated(self._commit(task, session, transaction), context)
            if error is not None and is_stop(error):
                raise error
        if error is not None:
            return judged(error, turn)
        task.took = Took(ended_at - called_at, self._clock.monotonic() - ended_at + called_at - began)
        return Handled()

    def _begin(self, session: Session, identity: Identity) -> tuple[SessionTransaction, Connection, float, bool]:
        transaction, connection = session.begin(), session.connection()
        reach("consumer.before_inbox_row")
        began = self._clock.monotonic()
        return transaction, connection, began, self._store.once(connection, identity)

    async def _commit(self, task: Task, session: AsyncSession, transaction: SessionTransaction) -> None:
        """Commit, and with it the end of the message's starts.

        Not earlier: their row would be locked while the handler runs, and a redelivered copy would wait for that.
        """
        async with answering(patience(task.handler)):
            if task.counted:
                await self._store.forget_starts(session, task.identity)
            await session.run_sync(lambda _: transaction.commit())


def patience(handler: Handler) -> float:
    """How long our statements may take: a copy of a message may be under way elsewhere, and then our INSERT rightly
    waits as long as *its* handler may take."""
    return ANSWER_SECONDS + (handler.timeout or PATIENCE_SECONDS)


def may_take(handler: Handler) -> float | None:
    """How long a transaction takes at most if all is well: it may wait for a copy of its message, then it runs."""
    return None if handler.timeout is None else ANSWER_SECONDS + 2 * handler.timeout


async def proven(handler: Handler, turn: HandlersTurn) -> BaseException | None:
    """What speaks against the commit, though no handler has raised it."""
    try:
        async with answering(patience(handler)):
            await turn.prove()
    except BaseException as error:  # a statement was swallowed, or the connection is lost
        if is_stop(error):
            raise
        return error
    return None


def judged(error: BaseException, turn: HandlersTurn) -> Failed | Unsettled:
    """Whose fault it is that a transaction did not commit: the handler's, or the database's."""
    for each in (error, turn.database_error):
        if each is not None and is_away(each):
            return Unsettled(each)
    return Failed(error, REASONS.get(type(error), "handler_failed"))


def _policy(retry: Retry, error: BaseException) -> Retry:
    """The policy for an error: two transactions that met in the database are tried again whatever it says of errors."""
    return replace(retry, on=(BaseException,), never=()) if is_contention(error) else retry
