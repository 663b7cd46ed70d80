"""A member of a producer group: takes checks from the group's queue and answers them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial

from relmsg.broker.connection import Connection
from relmsg.broker.declare import ensure_queue
from relmsg.broker.envelope import MAX_BODY_BYTES
from relmsg.broker.error_text import trace_for
from relmsg.broker.receipt import Confirmed
from relmsg.broker.subscriber import Delivery, Subscriber
from relmsg.clock import Clock
from relmsg.errors import MalformedHalf, RelmsgError
from relmsg.half.checking import Checkers, HalfMessage
from relmsg.half.half import number, read_half
from relmsg.half.metrics import CheckerMetrics, CheckFailure
from relmsg.half.protocol import CHECK, REASON, RESOLUTION, VERB, Answer, Verb, checks_of
from relmsg.half.sender import Sender
from relmsg.half.state import Resolution
from relmsg.message import HeaderValue
from relmsg.retry import full_jitter
from relmsg.runtime.background import Background
from relmsg.runtime.bounded_log import BoundedLog
from relmsg.runtime.isolated import is_stop
from relmsg.security.encryption import Encryption
from relmsg.security.received import opened
from relmsg.telemetry import span

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0


class Member:
    """Answers checks, at most ``concurrency`` at a time, and takes no more than it works on.

    A check is received when its checker is about to run, and from then on it counts. One that the broker delivers a
    second time may have ended the member that had it first: it is dropped, and the next check comes by itself. So is
    one that cannot be answered because the broker is away.
    """

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        checkers: Checkers,
        metrics: CheckerMetrics,
        *,
        concurrency: int,
        max_body_bytes: int = MAX_BODY_BYTES,
        encryption: Encryption | None = None,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connection = connection
        self._sender = sender
        self._checkers = checkers
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._encryption = encryption
        self._clock = clock
        self._chance = chance
        self._lines = BoundedLog(log, clock.monotonic)
        self._queue = checks_of(sender.group)
        self._subscriber = Subscriber(
            connection, self._queue.name, self._take, prefetch=concurrency, clock=clock, chance=chance
        )
        self._is_started = False
        self._keeping = Background(f"group {sender.group}: take checks", self._keep, chance)
        self._checks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def is_consuming(self) -> bool:
        """Whether checks can arrive at this moment."""
        return self._subscriber.is_consuming

    async def start(self) -> None:
        """Take checks from now on.

        :raises BrokerAway, AccessRefused, BrokerRefused: as the broker answers.
        """
        await ensure_queue(self._connection, self._queue)
        await self._subscriber.start()
        self._is_started = True
        self._keeping.start()

    def start_soon(self) -> None:
        """Take checks as soon as the broker lets us; does nothing where that has been said before."""
        self._keeping.start()

    async def close(self) -> None:
        """Take no more checks, and give those under way five seconds; what is left over is asked again later."""
        self._closing = True
        await self._keeping.stop()
        await self._subscriber.stop()
        if self._checks:
            _, late = await asyncio.wait(self._checks, timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._subscriber.close()

    async def _keep(self) -> None:
        failures = 0
        while not self._is_started:
            try:
                await ensure_queue(self._connection, self._queue)
                self._is_started = True
            except RelmsgError as error:
                failures += 1
                log.warning("queue %s: %s", self._queue.name, error)
                await self._clock.sleep(full_jitter(failures, 0.1, 10.0, self._chance))
        await self._subscriber.run()

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._handle(delivery))
        self._checks.add(task)
        task.add_done_callback(partial(self._answered, delivery))

    def _answered(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        self._checks.discard(task)
        if not self._closing and (task.cancelled() or task.exception() is not None):
            self._lines.error(
                "half message %s: the task of a check was cancelled by somebody else", delivery.message.id
            )
            delivery.give_back()  # otherwise it would keep its place among those that are worked on

    async def _handle(self, delivery: Delivery) -> None:
        if delivery.redelivered:
            self._lines.info("dropped a check of half message %s, which another member has had", delivery.message.id)
        else:
            reason: CheckFailure = "unreadable"
            try:
                half = self._asked(delivery)
                reason = "unanswered"
                await self._answer(half)
            except RelmsgError as error:
                self._metrics.failed(reason)
                self._lines.warning("half message %s: a check could not be answered: %s", delivery.message.id, error)
            except BaseException as error:
                if is_stop(error):
                    raise
                self._metrics.failed("internal_error")
                trace = trace_for(delivery.message.headers, error)
                self._lines.error("half message %s: a check could not be answered\n%s", delivery.message.id, trace)
        await delivery.ack()

    def _asked(self, delivery: Delivery) -> HalfMessage:
        """What a check asks about. :raises RelmsgError: it is none."""
        headers = delivery.message.headers
        check = number(headers, CHECK)
        if delivery.fault is not None or check is None or headers.get(VERB) != Verb.CHECK:
            raise MalformedHalf(f"this is no check, but {headers.get(VERB)!r}") from delivery.fault
        half = read_half(delivery.message, None, max_body_bytes=self._max_body_bytes)
        return HalfMessage(opened(half.message(), self._encryption), half.group, check)

    async def _answer(self, half: HalfMessage) -> None:
        with span("check", {"messaging.message.id": str(half.id)}, continues=half.message.headers):
            this: dict[str, HeaderValue] = {CHECK: half.check}
            if self._checkers.find(half.type) is not None:
                await self._say(Verb.RECEIVED, half, this)
            answer = await self._checkers.ask(half)
            await self._say(Verb.ANSWER, half, this | _words(answer))

    async def _say(self, verb: Verb, half: HalfMessage, headers: Mapping[str, HeaderValue]) -> None:
        receipt = await self._sender.say(verb, half.id, headers)
        if not isinstance(receipt, Confirmed):
            raise receipt


def _words(answer: Answer) -> dict[str, HeaderValue]:
    if answer is Answer.NO_CHECKER:
        return {RESOLUTION: Resolution.UNKNOWN.value, REASON: answer.value}
    return {RESOLUTION: Resolution(answer.upper()).value}
