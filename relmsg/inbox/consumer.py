"""A consumer process: subscriptions, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from relmsg.broker.connection import Connection
from relmsg.broker.long_pause import LONG_SECONDS, LongPause
from relmsg.broker.subscriber import Subscriber, require_queue
from relmsg.clock import Clock
from relmsg.db.failures import named
from relmsg.exceptions import trace_of
from relmsg.inbox.consume.long_pause import Trial
from relmsg.inbox.intake import Intake
from relmsg.inbox.outcome import TaskCancelled
from relmsg.inbox.rest import Rest
from relmsg.inbox.worker import Worker

log = logging.getLogger(__name__)

STUCK_SECONDS = 60.0
GOODBYE_SECONDS = 1.0  # for the rollback of what was cancelled


class Consumer:
    """Receives from all queues of an inbox and has each delivery handled.

    Each queue has a connection of its own: a frame that the AMQP library cannot read cuts a connection, and must not
    cut the others (reliability B1). Handlers run in tasks of ours: when a connection is lost they go on and commit;
    their ack is skipped then, and the redelivery is a Duplicate.
    """

    def __init__(
        self,
        name: str,
        queues: Mapping[str, Connection],
        worker: Worker,
        intake: Callable[[Callable[[BaseException], None]], Intake],
        publishing: Connection,
        rest: Rest,
        *,
        prefetch: Mapping[str, int],
        drain: float,
        clock: Clock,
        trial: Trial,
        long_pause: float = LONG_SECONDS,
    ) -> None:
        self._name = name
        self._queues = queues
        self._worker = worker
        self._publishing = publishing
        self._rest = rest
        self._prefetch = prefetch
        self._drain_seconds = drain
        self._clock = clock
        self._trial = trial
        self._long_pause = long_pause
        self._beat_at = clock.monotonic()
        self._without_outcome = 0
        self._last_fault = ""
        self._intake = intake(self._fault)
        self._subscribers: list[Subscriber] = []

    def live(self) -> str | None:
        """None while the event loop turns and the deliveries move, otherwise what is wrong; the process should then be
        restarted.

        Deliveries move while one comes to its end, an attempt begins or ends, or a service that is away is tried, at
        least once a minute; a handler within its timeout, and a wait before a retry, may take longer.
        """
        still = self._clock.monotonic() - self._beat_at
        if still >= STUCK_SECONDS:
            return f"the event loop has not turned for {still:.0f} s"
        if self._without_outcome:
            return f"{self._without_outcome} tasks ended without an outcome, the last one by {self._last_fault}"
        still = self._rest.progress.standing_still()
        if self._intake.count and still >= STUCK_SECONDS:
            return f"{self._intake.count} deliveries are here, and nothing has moved for {still:.0f} s"
        return None

    def ready(self) -> str | None:
        """None while every queue is consumed and nothing makes the consumer pause, otherwise what does."""
        if not self._subscribers:
            return "starting"
        for subscriber in self._subscribers:
            if not (subscriber.is_consuming or subscriber.is_paused):
                return f"queue {subscriber.queue} is not consumed"
        trouble = self._worker.database.trouble or self._worker.error_exchange.trouble
        if trouble is None and any(subscriber.is_paused for subscriber in self._subscribers):
            return "the deliveries were given back during a long pause"
        return trouble

    async def run(self, stop: asyncio.Event, started: Callable[[], None]) -> None:
        """Consume until ``stop`` is set, then drain.

        Draining: no more deliveries, and the broker's word on it; what only waits is left unacked; what runs may
        finish, commit and ack, for ``drain`` seconds; then it is cancelled and stays unacked. Last, the channels close.

        :raises QueueMissing: a queue does not exist at the start. Later on it is waited for.
        :raises BrokerAway, AccessRefused, BrokerRefused, TopologyMismatch: at the start, as the broker answers.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._publishing)
            stack.push_async_callback(self._worker.errors.close)
            for queue, connection in self._queues.items():
                await require_queue(self._publishing, queue)
                await self._worker.errors.declare(queue)
                await stack.enter_async_context(connection)
                self._subscribers.append(
                    Subscriber(connection, queue, self._intake.put, prefetch=self._prefetch[queue])
                )
            stack.push_async_callback(self._drain)
            for subscriber in self._subscribers:
                await subscriber.start()
            started()
            keeping = [asyncio.create_task(subscriber.run()) for subscriber in self._subscribers]
            keeping.append(asyncio.create_task(self._beat()))
            gate = self._worker.database
            back = partial(gate.until_settled, self._trial)
            pause = LongPause(gate.shut_for, back, self._subscribers, self._long_pause)
            keeping.append(asyncio.create_task(pause.run()))
            stopped = asyncio.create_task(stop.wait())
            ends: set[asyncio.Future[Any]] = {stopped, *keeping}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended = [task for task in keeping if task.done()]
                for task in (stopped, *keeping):
                    task.cancel()
        for task in ended:
            if task.cancelled():
                raise TaskCancelled
            task.result()

    async def _drain(self) -> None:
        stopping = [asyncio.create_task(subscriber.stop()) for subscriber in self._subscribers]
        self._intake.drop_waiting()
        self._rest.end()
        await asyncio.gather(*stopping)
        if running := self._intake.tasks:
            log.info("%s: waiting for %d handlers to finish", self._name, len(running))
            _, late = await asyncio.wait(running, timeout=self._drain_seconds)
            for task in late:
                task.cancel("the time to drain is over")
            if late:
                log.warning("%s: cancelled %d handlers, their messages come again", self._name, len(late))
                await asyncio.wait(late, timeout=GOODBYE_SECONDS)
        self._intake.drop_waiting()
        await asyncio.gather(*(subscriber.close() for subscriber in self._subscribers))

    async def _beat(self) -> None:
        while True:
            self._beat_at = self._clock.monotonic()
            await asyncio.sleep(1.0)

    def _fault(self, error: BaseException) -> None:
        """Something ended without an outcome, by a fault of relmsg or by somebody who cancels what is not theirs.

        The others go on, and ``live`` tells it from now on. The consumer does not end by itself: one message could end
        each new process again, until the broker drops it with nothing said.
        """
        self._without_outcome += 1
        self._last_fault = named(error)
        log.error(
            "%s: a delivery ended without an outcome and is given back: %s\n%s",
            self._name,
            self._last_fault,
            trace_of(error),
        )
