"""One message, handled: retry( transaction( once( handler ) ) )."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from relmsg.broker.error_text import line_for
from relmsg.clock import Clock
from relmsg.db.deadline import answering
from relmsg.db.failures import brief, is_away, is_contention, may_concern_one, refuses_row
from relmsg.errors import DatabaseAway
from relmsg.exceptions import causes
from relmsg.failpoint import reach
from relmsg.inbox.call import Took, called, worked
from relmsg.inbox.deadline import Deadline
from relmsg.inbox.gate import Gate
from relmsg.inbox.handle.internal_error import concerns_message
from relmsg.inbox.handle.refused import Refusals
from relmsg.inbox.handle.witness import Witness
from relmsg.inbox.handler import Handler
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import (
    REASONS,
    Attempted,
    Contended,
    DeliveryGone,
    Duplicate,
    Failed,
    Handled,
    HandlerTimeout,
    Lost,
    Outcome,
    Settled,
    Unsettled,
    readable,
)
from relmsg.inbox.rest import Rest
from relmsg.inbox.store import Store
from relmsg.inbox.transaction import HandlersTurn, Opened
from relmsg.message import Message
from relmsg.retry import full_jitter
from relmsg.runtime.bounded_log import BoundedLog
from relmsg.runtime.isolated import is_stop, isolated

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
PROBE_SECONDS = 2.0
FAULTS_ALLOWED = 3  # a lost connection can look like one
LOSSES_TOGETHER = 2  # lost connections after which a message is handled alone, and before a witness
CONTENTION_SECONDS = 300.0
CONTENTION_BASE_SECONDS = 0.05
CONTENTION_CAP_SECONDS = 5.0
MOST_MILLISECONDS = 2**31 - 1  # PostgreSQL: 24 days
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
    lost: bool = False
    """Whether the last attempt has lost its connection after our own INSERT had passed."""
    gone: bool = False
    """Whether it has, with or without the connections of others."""
    losses: int = 0
    """How often its handler was running when the connection was lost."""
    accused: bool | None = None
    """Whether its handler has lost the connection by what it did; None where that cannot be told."""
    witness: Witness | None = None
    bookkeeping: bool = False
    """Whether the last attempt ended in a statement of ours beside the commit."""
    elsewhere: bool = False
    """Whether what its handler met in the last attempt is the state of another database than this transaction's."""
    silent: bool = False
    """Whether the database was silent while the handler ran in the last attempt."""
    refused_at: float | None = None
    """When the database last refused its inbox row, while nothing proved that it takes others."""
    took: Took | None = None
    """What its last attempt took, once it is committed."""


Around: TypeAlias = Callable[[Callable[[], Awaitable[Attempted]]], Awaitable[Attempted]]
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
        self._lines = BoundedLog(log, clock.monotonic)
        self.refusals = Refusals(sessions, store, clock)

    async def handle(self, task: Task, around: Around, wanted: Callable[[], bool] = lambda: True) -> Outcome:
        """Try until the message is handled, or its retries are spent, or it is not ``wanted`` any more.

        ``around`` is what each attempt is made in, such as a free slot. Where the database is away, no attempt is
        spent. The budget is for the waits between attempts; what the attempts themselves take has its own timeout.
        Contention spends no attempt: it is tried again, with backoff, for CONTENTION_SECONDS; that of our own
        statements for as long as it lasts. A message whose handler has lost its connection again and again by what it
        did has failed; so has one that has met a fault of ours FAULTS_ALLOWED times.
        """
        retry, waited, attempt, met, faults = task.handler.retry, 0.0, 1, 0, 0
        met_at: float | None = None

        async def once() -> Attempted:
            return await around(lambda: self.once(task))

        while True:
            outcome: Settled | Contended | Lost | None = await self._gate.until_settled(once, wanted)
            if outcome is None:
                return Unsettled(DeliveryGone())
            if isinstance(outcome, Contended):
                met += 1
                delay = full_jitter(met, CONTENTION_BASE_SECONDS, CONTENTION_CAP_SECONDS, self._chance)
                if not outcome.ours:
                    now = self._clock.monotonic()
                    met_at = now if met_at is None else met_at
                    if now - met_at > CONTENTION_SECONDS:
                        return Failed(outcome.error, "handler_failed", attempts=attempt)
            elif isinstance(outcome, Lost):
                if outcome.is_proven:
                    return Failed(outcome.error, "connection_lost", attempts=task.losses)
                delay = full_jitter(task.losses, CONTENTION_BASE_SECONDS, CONTENTION_CAP_SECONDS, self._chance)
            elif isinstance(outcome, Handled):
                return replace(outcome, attempts=attempt)
            elif not isinstance(outcome, Failed):
                return outcome
            elif outcome.reason == "internal_error":
                faults += 1
                if faults >= FAULTS_ALLOWED:
                    return replace(outcome, attempts=attempt)
                delay = full_jitter(faults, CONTENTION_BASE_SECONDS, CONTENTION_CAP_SECONDS, self._chance)
            else:
                wait = retry.delay(attempt, outcome.error, waited, self._chance)
                if wait is None:
                    return replace(outcome, attempts=attempt)
                delay = wait
                attempt += 1
                waited += delay
            self._metrics.retried(task.handler)
            self._lines.info(
                "message %s (%s): %s, tried again in %.2f s: %s",
                task.identity.message_id,
                task.message.type,
                "attempt failed" if isinstance(outcome, Failed) else type(outcome).__name__.lower(),
                delay,
                line_for(task.message.headers, outcome.error),
            )
            await self._rest.sleep(self._clock, delay)

    async def step_aside(self, met: int) -> None:
        """Wait before the next try of what has met another transaction so many times. :raises CancelledError: the
        consumer is stopping."""
        delay = full_jitter(met, CONTENTION_BASE_SECONDS, CONTENTION_CAP_SECONDS, self._chance)
        await self._rest.sleep(self._clock, delay)

    async def once(self, task: Task) -> Attempted:
        """One attempt, in one transaction: the inbox row, the handler's writes, our commit.

        A failure of *our* statements is the database's trouble: Unsettled, or Contended where another transaction was
        in the way. Where the database takes others, so that only a rule against this message, its values or a fault of
        ours can be the reason, it is Failed with ``internal_error``. A connection that is lost while the handler runs
        or while we commit is Lost if the database answers at once on another one, otherwise Unsettled; that commit may
        have happened, and then the next attempt is a Duplicate. A handler that ran out of time while the database was
        silent is Unsettled too. Where the handler has met another database that is away, its own answers, and it has
        Failed.

        A message whose handler has lost its connection LOSSES_TOGETHER times is handled before a witness: the next time
        it tells whether the handler did it, be it that it crashed the whole server, or whether it was an outage.
        """
        task.gone, task.accused, task.bookkeeping = False, None, False
        try:
            async with Opened(self._sessions) as session:
                outcome = await self._transaction(task, session)
        except BaseException as error:  # whatever it is, the message has no part in it
            if is_stop(error):
                raise
            if is_contention(error):
                return Contended(error, ours=True)
            if task.bookkeeping:
                return self._keeping_starts(task, error)
            return Failed(error, "internal_error") if await self._is_alone(task, error) else Unsettled(error)
        finally:
            if task.witness is not None:
                await task.witness.close()
                task.witness = None
        if isinstance(outcome, Handled):
            reach("consumer.after_commit")
        elif isinstance(outcome, Unsettled) and task.gone:
            return await self._lost(task, outcome)
        elif isinstance(outcome, Unsettled) and task.elsewhere and await answers(self._sessions):
            return Failed(outcome.cause, "handler_failed")
        elif isinstance(outcome, Failed) and is_contention(outcome.error):
            return Contended(outcome.error, ours=task.bookkeeping)
        elif isinstance(outcome, Failed) and task.bookkeeping:
            return self._keeping_starts(task, outcome.error)
        elif isinstance(outcome, Failed):
            return await excused(outcome, self._sessions, task.silent)
        return outcome

    async def _is_alone(self, task: Task, error: BaseException) -> bool:
        """Whether the database works for others, so that the reason is this message's or ours."""
        if not may_concern_one(error):
            return concerns_message(error) and await answers(self._sessions)
        is_alone = await self.refusals.is_alone(task.identity, error, task.refused_at)
        if not is_alone:
            task.refused_at = self._clock.monotonic()
        return is_alone

    def _keeping_starts(self, task: Task, error: BaseException) -> Contended | Unsettled:
        """Our own statement beside the commit has failed. If a rule of the user's keeps the message's starts, it is
        tried again at once, and they stay."""
        if not refuses_row(error):
            return Unsettled(error)
        self._lines.error("the starts of message %s cannot be forgotten: %s", task.identity.message_id, brief(error))
        task.counted = False
        return Contended(error, ours=True)

    async def _lost(self, task: Task, outcome: Unsettled) -> Lost | Unsettled:
        """Whose doing it is that the connection was lost while the handler ran."""
        task.losses += 1
        if task.accused is False or not (task.accused or (task.lost and await answers(self._sessions))):
            return outcome
        return Lost(outcome.cause, is_proven=task.losses > LOSSES_TOGETHER)

    async def _transaction(self, task: Task, session: AsyncSession) -> Outcome:
        async with answering(patience(task.handler)):
            transaction, connection, began, is_first = await session.run_sync(self._begin, task)
        if not is_first:
            await self._commit(task, session, transaction)
            return Duplicate()
        self._store.taken_at = began
        if task.losses >= LOSSES_TOGETHER and Witness.can_see(connection):
            task.witness = Witness(session)
            async with answering(ANSWER_SECONDS):
                await task.witness.open(connection)
        called_at = self._clock.monotonic()
        context = copy_context()
        task.lost = task.silent = task.elsewhere = False
        ask = partial(asked, self._sessions)
        with HandlersTurn(session, transaction, connection) as turn, Deadline(task.handler.timeout, ask) as deadline:
            work = worked(task.handler, turn, task.message, session, task.event)
            error = await called(task.handler, work, context, turn, deadline, self._metrics)
            if error is None and turn.is_lent:
                error = await proven(task.handler, turn)
            elif error is not None:
                task.elsewhere = await is_elsewhere(error, task.handler, turn)
        task.silent = deadline.was_silent
        ended_at = self._clock.monotonic()
        if error is None:
            reach("consumer.before_commit")
            error = await isolated(self._commit(task, session, transaction), context)
            if error is not None and is_stop(error):
                raise error
        if error is not None:
            task.lost, task.gone = turn.is_lost(), turn.is_gone()
            if task.witness is not None and task.gone:
                task.accused = await task.witness.accuses(error)
            return judged(error, turn)
        task.took = Took(ended_at - called_at, self._clock.monotonic() - ended_at + called_at - began)
        return Handled()

    def _begin(self, session: Session, task: Task) -> tuple[SessionTransaction, Connection, float, bool]:
        transaction, connection = session.begin(), session.connection()
        reach("consumer.before_inbox_row")
        began = self._clock.monotonic()
        return transaction, connection, began, self._store.once(connection, task.identity, idle_limit(task.handler))

    async def _commit(self, task: Task, session: AsyncSession, transaction: SessionTransaction) -> None:
        """Commit, and with it the end of the message's starts.

        Not earlier: their row would be locked while the handler runs, and a redelivered copy would wait for that.
        """
        async with answering(patience(task.handler)):
            if task.counted:
                task.bookkeeping = True
                await self._store.forget_starts(session, task.identity)
                task.bookkeeping = False
            await session.run_sync(lambda _: transaction.commit())


def patience(handler: Handler) -> float:
    """How long our statements may take: a copy of a message may be under way elsewhere, and then our INSERT rightly
    waits as long as *its* handler may take."""
    return ANSWER_SECONDS + (handler.timeout or PATIENCE_SECONDS)


def idle_limit(handler: Handler) -> str:
    """Milliseconds after which the server may take a silent transaction's process for vanished; 0: never."""
    if handler.timeout is None:
        return "0"
    return str(min(int(1000 * (ANSWER_SECONDS + 2 * handler.timeout)), MOST_MILLISECONDS))


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


async def is_elsewhere(error: BaseException, handler: Handler, turn: HandlersTurn) -> bool:
    """Whether a handler's error tells of the state of some database, and not of the one that its transaction is in.

    Its own engine or driver connection to a second one is its own affair, as any other service that it calls.
    """
    if not is_away(error) or turn.is_gone():
        return False
    if any(each is not None and is_away(each) for each in (turn.database_error, turn.flush_error)):
        return False
    # On the driver's own connection a statement may have failed that nobody has told us of.
    return not turn.is_lent or await proven(handler, turn) is None


async def answers(sessions: async_sessionmaker[Any]) -> bool:
    """Whether the database lets others work, on another connection and now."""
    try:
        async with answering(PROBE_SECONDS):
            return await asked(sessions)
    except BaseException as error:  # whatever it is, it is no answer
        if is_stop(error):
            raise
        return False


async def asked(sessions: async_sessionmaker[Any]) -> bool:
    """Ask the database for nothing, on another connection; whether it has answered."""
    try:
        async with Opened(sessions) as session:
            await session.execute(text("SELECT 1"))
    except Exception:  # noqa: BLE001 - whatever it is, it is no answer
        return False
    return True


async def excused(failed: Failed, sessions: async_sessionmaker[Any], was_silent: bool) -> Failed | Unsettled:
    """A handler's failure; Unsettled if it ran out of time, by our clock or its own, and the database was silent.

    A network that swallows packets raises nothing: the handler waits for its statement until some timeout ends it.
    """
    ran_out = any(isinstance(each, HandlerTimeout | TimeoutError) for each in causes(failed.error))
    if not ran_out or not (was_silent or not await answers(sessions)):
        return failed
    away = DatabaseAway("PostgreSQL was silent while a handler ran out of time")
    away.__cause__ = failed.error
    return Unsettled(away)


def judged(error: BaseException, turn: HandlersTurn) -> Failed | Unsettled:
    """Whose fault it is that a transaction did not commit: the handler's, or the database's."""
    error = readable(error)
    for each in (error, turn.database_error):
        if each is not None and is_away(each):
            return Unsettled(each)
    return Failed(error, REASONS.get(type(error), "handler_failed"))
