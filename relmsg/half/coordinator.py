"""The coordinator: keeps half messages until their groups have decided about them.

::

    take a delivery → one statement, which may be repeated → tell the producer → ack
    each second: park what was checked often enough → claim the checks that are due → send them

Any number of coordinators may run; they share nothing but the database and the queue.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from relmsg import arguments
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.declare import ensure_queue
from relmsg.broker.error_exchange import ErrorExchange
from relmsg.broker.long_pause import LongPause
from relmsg.broker.subscriber import Subscriber
from relmsg.clock import Clock, SystemClock
from relmsg.database import create_engine
from relmsg.errors import AccessRefused, DatabaseAway, RelmsgError
from relmsg.half.checks import Checks
from relmsg.half.intake import Intake
from relmsg.half.metrics import CoordinatorMetrics
from relmsg.half.pause import DatabasePause
from relmsg.half.protocol import COORDINATOR, coordinator_queue
from relmsg.half.set_aside import SetAside
from relmsg.half.store import ANSWER_SECONDS, HalfStore
from relmsg.half_rules import half_rules
from relmsg.migrate import require_current
from relmsg.outage import Outage
from relmsg.runtime.rest import rest_after
from relmsg.settings import Settings
from relmsg.topology import ERROR_EXCHANGE

log = logging.getLogger(__name__)

PREFETCH = 200
LINES = 4  # what concerns one half message is handled in the order it came; four half messages at a time
MEASURE_SECONDS = 2.0
MEASURE_SHARE, MEASURE_MOST_SECONDS = 0.01, 600.0  # of the time
PRUNE_SECONDS = 60.0
PRUNED_AT_ONCE = 1000
STUCK_SECONDS = 60.0
RETRY_SECONDS = 2.0


class Coordinator:
    """Stores half messages, carries out what is decided about them, and asks where nothing is.

    Holds: a half message that the broker has confirmed is sent if its group commits it and dropped if its group rolls
    it back, whoever comes first; it ends once, in one way, with one row in the outbox at most, whatever is delivered
    twice or out of order. One that nobody decides is kept: parked after the last check, never dropped. Nothing is acked
    before its effect is committed.

    Does not hold: an order among half messages. What is not answered because a service was away is answered later, or
    not at all: then the producer asks again, or is asked.

    Times and sizes are those of ``Settings``. ``committed`` is called when a message has come into the outbox.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: CoordinatorMetrics | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        committed: Callable[[], None] = lambda: None,
        scan_every: float = 1.0,
    ) -> None:
        arguments.instance("Coordinator(settings)", settings, Settings, "made by Settings.load()")
        arguments.clock_and_chance("Coordinator", clock, chance)
        self.metrics = metrics or CoordinatorMetrics()
        self.started = asyncio.Event()
        self._settings = settings
        self._clock = clock or SystemClock()
        self._chance = chance
        self._committed = committed
        self._scan_every = scan_every
        self._beat_at = self._clock.monotonic()
        self._database = Outage("PostgreSQL")
        self._not_pruned = SetAside("pruned", self._clock)
        self._subscriber: Subscriber | None = None
        self._intake: Intake | None = None

    def live(self) -> str | None:
        """None while the coordinator works, otherwise what is wrong; the process should then be restarted.

        Wrong is an event loop that has not turned for a minute. Wrong is also that deliveries are here and none was
        settled for a minute, though no service is away.
        """
        still = self._clock.monotonic() - self._beat_at
        if still >= STUCK_SECONDS:
            return f"the coordinator's loop has not turned for {still:.0f} s"
        stuck = self._intake.stuck_seconds() if self._intake is not None else 0.0
        if stuck >= STUCK_SECONDS:
            return f"half messages are here and none was settled for {stuck:.0f} s, though no service is away"
        return None

    def ready(self) -> str | None:
        """None while half messages are taken in and the database is there, otherwise what is wrong."""
        if self._subscriber is None or not self.started.is_set():
            return "the coordinator is starting"
        if self._database.reason is not None:
            return self._database.reason
        return None if self._subscriber.is_consuming else f"queue {COORDINATOR} is not consumed"

    async def run(self, stop: asyncio.Event) -> None:
        """Coordinate until ``stop`` is set; then take nothing more in, and finish what has begun.

        A database or broker that goes away later is waited for.

        :raises UsageError: ``stop`` is no ``asyncio.Event``.
        :raises DatabaseAway: at the start, when PostgreSQL does not answer.
        :raises BrokerAway: at the start, when RabbitMQ does not answer.
        :raises AccessRefused: at the start, when one of them refuses the login, or the queues.
        :raises SchemaError: at the start, when relmsg's tables do not fit this version.
        """
        arguments.instance("run(stop)", stop, asyncio.Event)
        async with AsyncExitStack() as stack:
            # Whoever waits for a connection of the pool gives up by the store's own deadline, as DatabaseAway.
            options = {"pool_size": LINES + 1, "max_overflow": 0, "pool_timeout": 2 * ANSWER_SECONDS}
            engine = create_engine(self._settings.database, **options)
            stack.push_async_callback(engine.dispose)
            await require_current(engine, self._settings.schema)
            publishing = await stack.enter_async_context(self._connect("half messages, publish"))
            consuming = await stack.enter_async_context(self._connect("half messages"))
            channel = ConfirmChannel(publishing, deadline=self._settings.confirm_deadline)
            stack.push_async_callback(channel.close)
            times = (self._settings.half_check_after, self._settings.half_check_every)
            after, every = (timedelta(seconds=each) for each in times)
            store = HalfStore(
                engine,
                schema=self._settings.schema,
                check_after=after,
                check_every=every,
                max_checks=self._settings.half_max_checks,
            )
            errors = ErrorExchange(publishing, ERROR_EXCHANGE)
            stack.push_async_callback(errors.close)
            await _declare(publishing, errors)
            intake = self._intake = Intake(
                store,
                channel,
                errors,
                metrics=self.metrics,
                database=self._database,
                committed=self._committed,
                max_body_bytes=self._settings.max_body_bytes,
                lines=LINES,
                rules=half_rules(self._settings.half_allowed),
                clock=self._clock,
                chance=self._chance,
            )
            checks = Checks(
                store,
                publishing,
                channel,
                metrics=self.metrics,
                chance=self._chance,
                postpone=every,
                clock=self._clock,
            )
            subscriber = self._subscriber = Subscriber(
                consuming, COORDINATOR, intake.put, prefetch=PREFETCH, clock=self._clock, chance=self._chance
            )
            stack.push_async_callback(subscriber.close)
            await subscriber.start()
            self.started.set()
            log.info("coordinating the half messages of queue %s", COORDINATOR)
            pause = DatabasePause(store, intake, self._database, clock=self._clock, chance=self._chance)
            duties = [
                subscriber.run(),
                LongPause(pause.away_for, pause.back, [subscriber]).run(),
                self._beat(),
                self._keep_queue(subscriber, publishing),
                self._repeat("checks", self._scan_every, lambda: self._check(checks)),
                self._repeat("prune", PRUNE_SECONDS, lambda: self._prune(store)),
                self._measure(store),
            ]
            await self._until(stop, subscriber, intake, duties)

    def _connect(self, purpose: str) -> Connection:
        settings = self._settings
        name = f"{settings.relay_name} {purpose}"
        return Connection(settings.broker, name=name, heartbeat=settings.heartbeat, clock=self._clock)

    async def _until(
        self,
        stop: asyncio.Event,
        subscriber: Subscriber,
        intake: Intake,
        duties: list[Coroutine[Any, Any, None]],
    ) -> None:
        """Do all of it until it is to stop, or something fails that should not; then finish what has begun."""
        taking = asyncio.create_task(intake.run())
        others = [asyncio.create_task(duty) for duty in duties]
        stopped = asyncio.create_task(stop.wait())
        try:
            ended_first, _ = await asyncio.wait({stopped, taking, *others}, return_when=asyncio.FIRST_COMPLETED)
            by_itself = [task for task in ended_first if task is not stopped and not stop.is_set()]
            await subscriber.stop()
            intake.stop()
            await asyncio.wait({taking}, timeout=self._settings.drain)
        finally:
            left = (stopped, taking, *others)
            for task in left:
                task.cancel()
            ended = await asyncio.gather(*left, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0]
            if isinstance(error, Exception):
                raise error
        for task in by_itself:  # no duty ends by itself; without it the others would wait for ever
            raise RuntimeError(f"a duty of the coordinator has ended by itself: {task.get_coro()!r}")

    async def _check(self, checks: Checks) -> None:
        await checks.scan(max(1, round(self._settings.half_check_rate * self._scan_every)))

    async def _prune(self, store: HalfStore) -> None:
        older_than, refused = timedelta(seconds=self._settings.half_retention), self._not_pruned
        pruned = PRUNED_AT_ONCE
        while pruned >= PRUNED_AT_ONCE // 2:  # some of a batch may be refused
            pruned = 0

            async def all_old() -> None:
                nonlocal pruned
                pruned += await store.prune(older_than, PRUNED_AT_ONCE, refused())

            async def these(half_ids: Sequence[UUID]) -> None:
                nonlocal pruned
                pruned += await store.prune_these(half_ids, older_than)

            await refused.all_or_each(all_old, lambda: store.to_prune(older_than, PRUNED_AT_ONCE, refused()), these)

    async def _measure(self, store: HalfStore) -> None:
        async def measure() -> None:
            self.metrics.measured(await store.figures())

        while True:
            began = self._clock.monotonic()
            done = await self._attempt("figures", measure)
            took = self._clock.monotonic() - began
            rest = rest_after(took, share=MEASURE_SHARE, most=MEASURE_MOST_SECONDS)
            await self._clock.sleep(max(MEASURE_SECONDS, rest) if done else RETRY_SECONDS)

    async def _repeat(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            done = await self._attempt(name, work)
            await self._clock.sleep(seconds if done else min(seconds, RETRY_SECONDS))

    async def _attempt(self, name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do it, and tell whether it is done: a database that is away is waited for."""
        try:
            await work()
        except DatabaseAway as error:
            self._database.began(name, error)
            return False
        self._database.ended(name)
        return True

    async def _keep_queue(self, subscriber: Subscriber, connection: Connection) -> None:
        """Bring the queue back if somebody deletes it: the subscriber only waits for it."""
        while True:
            await self._clock.sleep(1.0)
            if not subscriber.is_consuming:
                with suppress(RelmsgError):
                    await ensure_queue(connection, coordinator_queue())

    async def _beat(self) -> None:
        while True:
            self._beat_at = self._clock.monotonic()
            await asyncio.sleep(1.0)


async def _declare(connection: Connection, errors: ErrorExchange) -> None:
    try:
        await ensure_queue(connection, coordinator_queue())
        await errors.declare(COORDINATOR)
    except AccessRefused as error:
        raise AccessRefused(
            f"{error}; half messages need the queues {COORDINATOR} and {COORDINATOR}.errors: let the relay declare "
            "them, or turn its coordinator off (--no-coordinator)"
        ) from error
