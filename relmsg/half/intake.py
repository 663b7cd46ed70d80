"""From the coordinators' queue to the table: each delivery is read, carried out, answered, and acked last."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from relmsg.broker.answer import really_cancelled
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.delivery import Delivery
from relmsg.broker.envelope import Envelope
from relmsg.broker.error_exchange import ErrorExchange
from relmsg.broker.receipt import Confirmed
from relmsg.broker.wire import publication
from relmsg.clock import Clock, SystemClock
from relmsg.db.failures import named
from relmsg.errors import BrokerAway, DatabaseAway, HalfNotAllowed, RelmsgError
from relmsg.exceptions import trace_of
from relmsg.failpoint import FailpointReached, reach
from relmsg.half import protocol
from relmsg.half.half import Half
from relmsg.half.metrics import CoordinatorMetrics
from relmsg.half.protocol import COORDINATOR, Answer, Verb
from relmsg.half.reading import Answered, Decision, Received, Word, line_of, read
from relmsg.half.state import HalfState
from relmsg.half.store import Decided, HalfStore
from relmsg.half_rules import Rule, rule_for
from relmsg.message import uuid7
from relmsg.outage import Outage
from relmsg.retry import full_jitter
from relmsg.runtime.bounded_log import BoundedLog

log = logging.getLogger(__name__)

CONSUMER = "half message coordinator"
FAULTS_ALLOWED = 3  # a lost connection can look like one
BASE_SECONDS, CAP_SECONDS = 0.1, 10.0
NOT_ALLOWED = "coordinator: not allowed"
SERVER_NAMED = "amq."  # as the broker names private queues: nobody shall have us write into any other


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a delivery goes to the error queue."""

    error: Exception
    reason: str
    attempts: int = 0


class Intake:
    """Carries out what deliveries want, those of one half message in the order they came.

    While the database is away, or the error queue does not take what belongs there, deliveries wait unacked, until they
    are carried out or the broker has taken them back.
    """

    def __init__(
        self,
        store: HalfStore,
        replies: ConfirmChannel,
        errors: ErrorExchange,
        *,
        metrics: CoordinatorMetrics,
        database: Outage,
        committed: Callable[[], None],
        max_body_bytes: int,
        lines: int,
        rules: Mapping[str, Rule] | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._replies = replies
        self._errors = errors
        self._metrics = metrics
        self._database = database
        self._error_queue = Outage("the error queue")
        self._committed = committed
        self._max_body_bytes = max_body_bytes
        self._rules = rules or {}
        self._chance = chance
        self._lines: list[asyncio.Queue[Delivery | None]] = [asyncio.Queue() for _ in range(lines)]
        self._stopping = asyncio.Event()
        self._clock = clock or SystemClock()
        self._here = 0
        self._bounded = BoundedLog(log, self._clock.monotonic)
        self._moved_at = self._clock.monotonic()

    def stuck_seconds(self) -> float:
        """For how long deliveries have been here and none was settled; 0 while a service that they need is away."""
        if not self._here or self._database.reason is not None or self._error_queue.reason is not None:
            return 0.0
        return self._clock.monotonic() - self._moved_at

    def waiting_for_database_seconds(self) -> float:
        """For how long deliveries have been here and none was settled; 0 while the database is not away."""
        if not self._here or self._database.reason is None:
            return 0.0
        return self._clock.monotonic() - self._moved_at

    def put(self, delivery: Delivery) -> None:
        """Note a delivery, and nothing more: the caller is the connection."""
        if not self._stopping.is_set():
            if not self._here:
                self._moved_at = self._clock.monotonic()
            self._here += 1
            self._lines[hash(line_of(delivery)) % len(self._lines)].put_nowait(delivery)

    async def run(self) -> None:
        """Carry out deliveries until ``stop`` is called and what had begun is finished."""
        lines = [asyncio.create_task(self._work(line)) for line in self._lines]
        try:
            done, _ = await asyncio.wait(lines, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.cancelled():
                    raise RuntimeError("somebody has cancelled the task of a line of half messages")
                task.result()
            await asyncio.gather(*lines)
        finally:
            for task in lines:
                task.cancel()
            await asyncio.gather(*lines, return_exceptions=True)

    def stop(self) -> None:
        """Begin nothing more; what only waits stays unacked."""
        self._stopping.set()
        for line in self._lines:
            line.put_nowait(None)

    async def _work(self, line: asyncio.Queue[Delivery | None]) -> None:
        while (delivery := await line.get()) is not None and not self._stopping.is_set():
            await self._settle(delivery)
            self._here -= 1
            self._moved_at = self._clock.monotonic()

    async def _settle(self, delivery: Delivery) -> None:
        """Try until it is carried out, or is not ours any more.

        One over which relmsg itself fails three times goes to the error queue. It must not end the relay, which would
        meet it again at every start.
        """
        failures, faults = 0, list[Exception]()
        while not (delivery.is_stale or self._stopping.is_set()):
            try:
                if len(faults) < FAULTS_ALLOWED:
                    await self._handle(delivery)
                else:
                    await self._refuse(delivery, faults[-1], "internal_error")
            except DatabaseAway as error:
                self._database.began(delivery, error)
            except (_NotTaken, BrokerAway) as error:
                self._error_queue.began(delivery, error)
            except asyncio.CancelledError:
                if really_cancelled():
                    raise
                self._error_queue.began(delivery, BrokerAway("the connection to RabbitMQ was lost"))
            except FailpointReached:
                raise
            except Exception as error:  # noqa: BLE001 - of any kind: nothing of one delivery may end the others
                faults.append(error)
                if len(faults) == FAULTS_ALLOWED:
                    self._metrics.failed()
                    self._bounded.error("a delivery to %s met a fault in relmsg\n%s", COORDINATOR, trace_of(error))
                elif len(faults) > FAULTS_ALLOWED:
                    self._bounded.error(
                        "a delivery to %s is left unacked, a person has to look: %s", COORDINATOR, named(error)
                    )
                    break
            else:
                if await delivery.ack():
                    reach("coordinator.after_ack")
                break
            failures += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(full_jitter(failures, BASE_SECONDS, CAP_SECONDS, self._chance)):
                    await self._stopping.wait()
        self._database.ended(delivery)
        self._error_queue.ended(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        try:
            word = read(delivery, max_body_bytes=self._max_body_bytes)
        except RelmsgError as error:
            await self._refuse(delivery, error)
            return
        reach("coordinator.before_statement")
        if isinstance(word, Half) and (why := self._forbidden(word)) is not None:
            await self._store.refuse(word.half_id, group=word.group, user_id=word.user_id, by=NOT_ALLOWED)
            self._bounded.error("half message %s is refused: group %r: %s", word.half_id, word.group, why)
            await self._refuse(delivery, HalfNotAllowed(f"group {word.group!r}: {why}"), "half_not_allowed")
            return
        try:
            decided = await self._carried_out(word)
        except DBAPIError as error:  # PostgreSQL cannot store it, and never will
            await self._refuse(delivery, error)
            return
        reach("coordinator.after_statement")
        self._note(word, decided)
        if isinstance(word, Decision):
            await self._answer(delivery, word, decided)

    def _forbidden(self, half: Half) -> str | None:
        rule = rule_for(self._rules, half.group)
        envelope = half.envelope
        return None if rule is None else rule.refusal(envelope.exchange, envelope.source, half.user_id)

    async def _carried_out(self, word: Word) -> Decided:
        store = self._store
        match word:
            case Half():
                return await store.prepare(word)
            case Decision(half_id, group, user_id, resolution, is_prepared):
                by = f"producer {group}"
                return await store.decide(
                    half_id, resolution, group=group, user_id=user_id, by=by, is_prepared=is_prepared
                )
            case Received(half_id, group, user_id, check):
                return await store.received(half_id, check, group=group, user_id=user_id)
            case Answered(half_id, group, user_id, check, answer):
                return await store.answered(half_id, check, answer, group=group, user_id=user_id)

    def _note(self, word: Word, decided: Decided) -> None:
        """Tell metrics, log and relay what has come of it."""
        metrics = self._metrics
        if decided.refusal is not None:
            metrics.refused(decided.refusal)
            self._bounded.warning(
                "half message %s: a %s of group %r (login %s) does not count: %s",
                word.half_id,
                type(word).__name__.lower(),
                word.group,
                word.user_id or "unknown",
                decided.refusal,
            )
        match word:
            case Half():
                if decided.changed:
                    metrics.prepared()
            case Received():
                if decided.changed:
                    metrics.received()
            case Answered(answer=answer) if decided.refusal is None:
                metrics.answered(answer)
                if answer is Answer.NO_CHECKER:
                    self._bounded.warning(
                        "half message %s: group %r has no checker for its type", word.half_id, word.group
                    )
        if decided.changed and decided.state.is_final:
            if not isinstance(word, Half):
                metrics.ended(decided.state)
            if decided.state is HalfState.COMMITTED:
                self._committed()

    async def _answer(self, delivery: Delivery, decision: Decision, decided: Decided) -> None:
        """Tell the producer how the half message stands now. Whether that arrives is not waited for: the producer may
        be gone, and one that hears nothing asks again."""
        reply_to = delivery.message.reply_to
        if not reply_to or not reply_to.startswith(SERVER_NAMED):
            return
        headers = {
            protocol.VERB: Verb.STATE.value,
            protocol.HALF_ID: str(decision.half_id),
            protocol.STATE: decided.state.value,
        }
        if decided.refusal is not None:
            headers[protocol.REASON] = decided.refusal.value
        reply = Envelope(str(uuid7()), "", reply_to, b"", headers, correlation_id=delivery.message.correlation_id)
        try:
            (receipt,) = await self._replies.publish([publication(reply)])
        except RelmsgError as error:
            log.debug("half message %s: its producer could not be told: %s", decision.half_id, error)
            return
        if not isinstance(receipt, Confirmed):
            log.debug("half message %s: its producer could not be told: %s", decision.half_id, receipt)

    async def _refuse(self, delivery: Delivery, error: Exception, reason: str = "malformed_half") -> None:
        """Have it in the error queue, with its diagnosis. :raises _NotTaken: it is not known to be there."""
        receipt = await self._errors.take(delivery, _Failed(error, reason), CONSUMER, str(delivery.message.id))
        if not isinstance(receipt, Confirmed):
            raise _NotTaken(str(receipt)) from receipt
        self._metrics.malformed()


class _NotTaken(Exception):
    """The error queue has not taken a delivery, or has not said so."""
