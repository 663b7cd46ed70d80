"""The relay: reads committed rows, publishes them, and settles each by its receipt.

::

    keep slots → read what they hold → send in batches → settle: delete · hold · send again · isolate · park

No transaction is open while the broker is awaited. A row is deleted only after its confirm, so a crash at any moment
costs at worst a second copy under the same message id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg import arguments
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.clock import Clock, SystemClock
from relmsg.database import create_engine
from relmsg.db.failures import named
from relmsg.errors import DatabaseAway
from relmsg.migrate import require_current
from relmsg.outage import Outage
from relmsg.outbox.deletes import RETRY_SECONDS, Deletes
from relmsg.outbox.driver import PLANNED_ONCE, Driver
from relmsg.outbox.duties import Duties
from relmsg.outbox.holds import Holds
from relmsg.outbox.listen import Listener
from relmsg.outbox.metrics import RelayMetrics
from relmsg.outbox.notes import Notes
from relmsg.outbox.pending import Pending
from relmsg.outbox.positions import Positions
from relmsg.outbox.progress import Health, Progress
from relmsg.outbox.reader import Reader
from relmsg.outbox.sender import Sender
from relmsg.outbox.settle import Settler
from relmsg.outbox.slots import Slots
from relmsg.outbox.store import OutboxStore
from relmsg.settings import Settings

log = logging.getLogger(__name__)

MEASURE_DEADLINE = 600.0
READ_PARTS = ("read", "read late", "step")


class Relay:
    """Moves committed messages from the outbox to the broker.

    Holds: a committed row is published at least once, always under the same message id, and deleted only after the
    broker confirmed it; rows of one ordering key leave in the order of their ids, one unconfirmed at a time; a row that
    cannot go anywhere holds back nothing but its own destination and its own key.

    Does not hold: exactly once. After a crash, a lost connection or a missed deadline rows go out again.

    Several relays share the work; run two for availability. Times and sizes are those of ``Settings``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: RelayMetrics | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        stall_seconds: float = 30.0,
    ) -> None:
        arguments.instance("Relay(settings)", settings, Settings, "made by Settings.load()")
        arguments.clock_and_chance("Relay", clock, chance)
        self.metrics = metrics or RelayMetrics()
        self._settings = settings
        self._clock = clock or SystemClock()
        self._progress = Progress(self._clock.monotonic(), stall_seconds=stall_seconds)
        self._pending = Pending()
        self._holds = Holds(chance)
        self._happened = asyncio.Event()
        self._hinted = False
        self.started = asyncio.Event()
        self._failure: BaseException | None = None
        self._leaving = False
        self._database = Outage("PostgreSQL")
        self._broker = Outage("RabbitMQ")
        self._health = Health(
            self._pending,
            self._holds,
            self._progress,
            database=self._database,
            broker=self._broker,
            confirm_deadline=settings.confirm_deadline,
            clock=self._clock,
        )

    def wake(self) -> None:
        """Look for new rows now instead of at the next poll; safe to call at any time from the event loop."""
        self._hinted = True
        self._happened.set()

    def live(self) -> str | None:
        """None while the relay works, otherwise what is wrong; the process should then be restarted.

        Wrong is a loop that has not turned for a minute. Wrong is also that messages are due and no publish has ended
        for a minute, though no service is away; what waits for a missing route is not due.
        """
        return self._health.live()

    def ready(self) -> str | None:
        """None while messages that are due move, otherwise what is wrong. What waits for a missing route is not due:
        ``relmsg_relay_held_destinations`` tells of it."""
        return self._health.ready() if self.started.is_set() else "starting"

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until ``stop`` is set; then read nothing more, wait for the confirms in flight, settle them, and leave.

        A database or broker that goes away later is waited for.

        :raises UsageError: ``stop`` is no ``asyncio.Event``.
        :raises DatabaseAway: at the start, when PostgreSQL does not answer.
        :raises BrokerAway: at the start, when RabbitMQ does not answer.
        :raises AccessRefused: at the start, when one of them refuses the login.
        :raises SchemaError: at the start, when relmsg's tables do not fit this version.
        """
        arguments.instance("run(stop)", stop, asyncio.Event)
        settings = self._settings
        async with AsyncExitStack() as stack:
            engine = create_engine(settings.database, pool_size=4, max_overflow=0)
            stack.push_async_callback(engine.dispose)
            await require_current(engine, settings.schema)
            publishing = await stack.enter_async_context(self._connect("publish"))
            probing = await stack.enter_async_context(self._connect("probe"))
            self._assemble(stack, engine, publishing, probing)
            self.started.set()
            works = [
                self._duties.keep_slots(),
                self._duties.measure(),
                self._settler.keep_probing(),
                self._notes.keep_writing(),
                self._notes.keep_trying(),
                self._deletes.keep_trying(),
            ]
            if settings.listen:
                works.append(self._listener(stack, engine).run())
            deleting = asyncio.create_task(self._deletes.keep_deleting())
            duties = [deleting, *(asyncio.create_task(work) for work in works)]
            for task in duties:
                task.add_done_callback(self._duty_ended)
            try:
                try:
                    await self._relay(stop)
                except Exception:
                    await self._drain(deleting)
                    raise
                await self._drain(deleting)
                self._raise_failure()
            finally:
                self._leaving = True
                left = (*duties, *self._sender.tasks)
                for task in left:
                    task.cancel()
                try:
                    await asyncio.gather(*left, return_exceptions=True)
                finally:
                    await self._resign()

    def _connect(self, purpose: str) -> Connection:
        name = f"{self._settings.relay_name} {purpose}"
        return Connection(self._settings.broker, name=name, heartbeat=self._settings.heartbeat, clock=self._clock)

    def _listener(self, stack: AsyncExitStack, engine: AsyncEngine) -> Listener:
        url = self._settings.listen_url
        if url is not None:
            engine = create_engine(url)
            stack.push_async_callback(engine.dispose)
        schema, hints = self._settings.schema, self.metrics.hints
        return Listener(engine, self.wake, schema=schema, hints=hints, pooled=url is not None)

    def _assemble(
        self, stack: AsyncExitStack, engine: AsyncEngine, publishing: Connection, probing: Connection
    ) -> None:
        settings = self._settings
        reader, writer = Driver(engine, planning=PLANNED_ONCE), Driver(engine)
        measurer = Driver(engine, deadline=MEASURE_DEADLINE)
        keeper = Driver(engine, deadline=settings.lease / 3)
        for driver in (reader, writer, measurer, keeper):
            stack.push_async_callback(driver.close)
        self._store = OutboxStore(reader, writer, measurer, schema=settings.schema)
        self._slots = Slots(
            keeper,
            schema=settings.schema,
            # Two processes told the same name, as replicas are, must still be two owners.
            owner=f"{settings.relay_name}/{secrets.token_hex(3)}",
            lease=settings.lease,
            renew=settings.renew,
            clock=self._clock,
        )
        self._channel = ConfirmChannel(publishing, window=settings.window, deadline=settings.confirm_deadline)
        positions = Positions()
        self._publishing = publishing
        self._notes = Notes(self._store, self._pending, clock=self._clock, database=self._database)
        self._deletes = Deletes(
            self._store, self._pending, self._notes, progress=self._progress, clock=self._clock, database=self._database
        )
        self._settler = Settler(
            self._store,
            self._pending,
            positions,
            self._holds,
            self._deletes,
            self._notes,
            probing,
            broker=self._broker,
            owned=lambda: self._slots.owned,
            metrics=self.metrics,
            progress=self._progress,
            clock=self._clock,
            deadline=settings.confirm_deadline,
            wake=self.wake,
        )
        self._sender = Sender(
            self._channel,
            self._pending,
            self._holds,
            self._settler,
            broker=self._broker,
            progress=self._progress,
            batch=settings.batch,
            clock=self._clock,
            ended=self._ended,
        )
        self._reader = Reader(
            self._store,
            self._pending,
            positions,
            self._holds,
            self._settler.park,
            metrics=self.metrics,
            clock=self._clock,
            batch=settings.batch,
            max_body_bytes=settings.max_body_bytes,
        )
        self._duties = Duties(
            self._slots,
            self._store,
            self._reader,
            self._pending,
            publishing,
            metrics=self.metrics,
            progress=self._progress,
            database=self._database,
            clock=self._clock,
            wake=self.wake,
        )

    async def _relay(self, stop: asyncio.Event) -> None:
        """The loop: send what is ready, read on, sleep until something happens."""
        stopped = asyncio.create_task(self._wake_on(stop))
        pause = self._settings.poll_min
        read_at = 0.0
        try:
            while not stop.is_set():
                now = self._clock.monotonic()
                self._health.turned(self._publishing)
                self._happened.clear()
                self._raise_failure()
                self._reader.follow(self._duties.readable)
                self.metrics.slots.set(len(self._reader.slots))
                self.metrics.held.set(len(self._holds))
                sent = self._send()
                if now >= read_at or self._hinted:
                    self._hinted = False
                    more, found = await self._read()
                    sent += found
                    pause = self._settings.poll_min if more or sent else min(pause * 2, self._settings.poll_max)
                    read_at = 0.0 if more else self._clock.monotonic() + pause
                elif sent:
                    pause = self._settings.poll_min
                    read_at = min(read_at, now + pause)
                await self._sleep(read_at)
        finally:
            stopped.cancel()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._happened.set()

    async def _sleep(self, until: float) -> None:
        pause = until - self._clock.monotonic()
        if pause <= 0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._happened.wait()

    async def _read(self) -> tuple[bool, int]:
        """Read, and send what was found; whether there may be more, and how many rows were sent."""
        if not self._slots.owned:
            for part in READ_PARTS:
                self._database.ended(part)  # whether the database is away is told by who keeps the slots
            return False, 0
        more, sent = False, 0
        part = READ_PARTS[0]
        try:
            for part in READ_PARTS:
                match part:
                    case "read":
                        more |= await self._reader.read()
                    case "read late":
                        more |= await self._reader.read_late(busy=sent > 0)
                    case _:
                        more |= await self._reader.step()
                self._database.ended(part)
                self._health.turned()
                self._reader.follow(self._duties.readable)  # a slot may have been lost meanwhile
                if found := self._send():
                    sent += found
                    await asyncio.sleep(0)  # until they are written: what follows takes the loop's time
        except DatabaseAway as error:
            self._database.began(part, error)
            await self._clock.sleep(RETRY_SECONDS)
            more = False
        return more, sent

    def _send(self) -> int:
        sent = self._sender.send() if self._slots.owned else 0
        self.metrics.in_flight.set(self._channel.unconfirmed)
        return sent

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._happened.set()
        if task.cancelled():
            if not self._leaving and self._failure is None:  # its rows would be out for ever
                self._failure = RuntimeError("somebody has cancelled the task of a batch or of a duty of the relay")
        elif (error := task.exception()) is not None:
            self._failure = error

    def _duty_ended(self, task: asyncio.Task[None]) -> None:
        """A duty ends when it is cancelled by us, and otherwise never: whoever waits for it would wait for ever."""
        self._ended(task)
        if not self._leaving and self._failure is None:
            self._failure = RuntimeError(f"a duty of the relay has ended by itself: {task.get_coro()!r}")

    def _raise_failure(self) -> None:
        """A duty or a batch has failed unexpectedly: end here, and say so; the rows are sent by the next relay."""
        if self._failure is not None:
            raise self._failure

    async def _drain(self, deleting: asyncio.Task[None]) -> None:
        """Wait for what is at the broker, and for the deletes while there is somebody who makes them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain):
                await self._sender.finished()
                finished = asyncio.create_task(self._deletes.finished())
                try:
                    await asyncio.wait({finished, deleting}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    finished.cancel()

    async def _resign(self) -> None:
        try:
            async with asyncio.timeout(5):
                await self._slots.resign()
        except Exception as error:  # noqa: BLE001 - it must not hide what has ended the relay
            log.warning("the slots could not be given back, they are free when the lease ends: %s", named(error))
