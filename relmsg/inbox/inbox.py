"""The inbox: handlers, and the promise that the effect of a message happens once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import arguments
from relmsg.broker.connection import Connection
from relmsg.broker.error_exchange import ErrorExchange
from relmsg.clock import Clock, SystemClock
from relmsg.errors import HandlerRefused, UsageError
from relmsg.inbox.attempt import Attempts
from relmsg.inbox.consume.long_pause import writing
from relmsg.inbox.consume.progress import Progress
from relmsg.inbox.consumer import Consumer
from relmsg.inbox.gate import Gate
from relmsg.inbox.group import Groups
from relmsg.inbox.handle.content_encoding import MAX_BODY_BYTES
from relmsg.inbox.handle.limits import MAX_HEADER_BYTES, Limits
from relmsg.inbox.handler import GROUP, GROUP_OF_LISTS, Handler, parameters
from relmsg.inbox.identity import MissingId
from relmsg.inbox.intake import Intake
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.pruner import Pruner
from relmsg.inbox.pruning import DEFAULT_WINDOW, Pruning
from relmsg.inbox.registry import Registry
from relmsg.inbox.rest import Rest
from relmsg.inbox.running import Running
from relmsg.inbox.sessions import require_transactions
from relmsg.inbox.slots import Slots
from relmsg.inbox.starts import Starts
from relmsg.inbox.store import Store
from relmsg.inbox.together import Together
from relmsg.inbox.worker import Worker
from relmsg.migrate import require_current
from relmsg.retry import Retry, Seconds
from relmsg.runtime.background import Background
from relmsg.security.encryption import Encryption
from relmsg.security.trust import Trust
from relmsg.settings import amqp_urls, schema_in_force
from relmsg.topology import ERROR_EXCHANGE, Exchange, Queue, checked_name

PREFETCH = 250
GROUPS_AHEAD = 5  # some run or commit while others are on their way from the broker
MOST_WINDOW_SECONDS = 100 * 365 * 24 * 3600.0
MOST_BODY_BYTES = 1024**3
MOST = 65_535  # AMQP: a prefetch count has 16 bits

Url: TypeAlias = str | Callable[[], str]
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class Inbox:
    """Handles messages so that the effect of each happens once in your database, however often it is delivered.

    The row that remembers a message, what its handler writes, and what its handler publishes through an ``Outbox``
    commit together; the message is acked after that commit. What a handler does *outside* of that database, such as an
    HTTP call or a mail, can happen more than once: give the receiver ``message.id`` as its idempotency key.

    :param name: under which handled messages are remembered. Another name is another consumer, and gets every message
        for itself; a *changed* name handles again what is delivered again.
    :param schema: the database schema with relmsg's tables; that of ``RELMSG_SCHEMA`` unless given, else ``relmsg``.
    :param sessions: where handlers work. Its pool should hold ``concurrency`` + 2 connections.
    :param missing_id: what becomes of messages without an id. ``"reject"``: to the error exchange. ``"hash"``: an id
        is made from their content, and two equal messages are one.
    :param trust: the proof that each message's source needs; without it, whoever may publish to a queue is believed.
    :param encryption: opens encrypted bodies for the handlers.
    :param prefetch: messages the broker hands over ahead of the acks, for each queue. By default 250, or five of the
        queue's largest groups (1000 with a list handler) where that is more: one fills while others commit. What one
        process holds another cannot have, and all of it is held in memory: with handlers that take seconds and several
        processes on one queue, or with large bodies, a small number, such as twice ``concurrency``, is better.
    :param concurrency: handlers that run at a time, for all queues together.
    :param drain: seconds that running handlers are given to finish when the process is to stop.
    :param heartbeat: seconds between signs of life of the broker; a silent one is noticed after three of them.
    :param max_body_bytes: the most bytes that a compressed body may have once it is decompressed, 16 MiB by default. A
        larger one goes to the error exchange.
    :param max_json_bytes: the most bytes of a body that is decoded for a handler, 16 MiB by default. A larger one goes
        to the error exchange.
    :param max_header_bytes: the same for all headers together, 128 KiB by default.
    :param dedup_window: how long a handled message is remembered, 30 days by default: longer than any message can be
        under way, wait in an error queue or be replayed. One that comes again later is handled again. What is older is
        pruned while the inbox runs, by one process at a time. None: nothing is ever pruned.
    """

    def __init__(
        self,
        name: str,
        sessions: async_sessionmaker[Any],
        *,
        schema: str | None = None,
        amqp_url: str | None = None,
        missing_id: MissingId = "reject",
        trust: Trust | None = None,
        encryption: Encryption | None = None,
        error_exchange: str | Exchange = ERROR_EXCHANGE,
        prefetch: int | None = None,
        concurrency: int = 8,
        drain: Seconds = 25.0,
        heartbeat: Seconds = 10.0,
        dedup_window: Seconds | None = DEFAULT_WINDOW,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_json_bytes: int = MAX_BODY_BYTES,
        max_header_bytes: int = MAX_HEADER_BYTES,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        arguments.text("Inbox(name), under which handled messages are remembered,", name)
        if not isinstance(sessions, async_sessionmaker):
            raise UsageError(
                f"Inbox(name, sessions): sessions is an async_sessionmaker, not a {type(sessions).__name__}; "
                "make one by async_sessionmaker(engine)"
            )
        bind = sessions.kw.get("bind")
        if bind is not None and not isinstance(bind, AsyncEngine | AsyncConnection):
            raise UsageError(
                f"Inbox(name, sessions): the sessions work on a {type(bind).__name__}; they need an AsyncEngine, "
                "made by create_async_engine"
            )
        arguments.choice("Inbox(missing_id=…)", missing_id, ("reject", "hash"))
        if amqp_url is not None:
            amqp_urls(arguments.text("Inbox(amqp_url=…)", amqp_url, most=None))
        error_exchange = checked_name("exchange", arguments.named(error_exchange, Exchange), reserved=True)
        arguments.clock_and_chance("Inbox", clock, chance)
        self.name = name
        self.schema = schema_in_force(schema)
        self.sessions = sessions
        self.metrics = Metrics()
        self.prefetch = None if prefetch is None else _prefetch("Inbox(prefetch=…)", prefetch)
        self.concurrency = _concurrency("Inbox(concurrency=…)", concurrency)
        self.drain = arguments.seconds("Inbox(drain=…)", drain)
        self.heartbeat = _heartbeat("Inbox(heartbeat=…)", heartbeat)
        self.dedup_window = None if dedup_window is None else _window("Inbox(dedup_window=…)", dedup_window)
        self.limits = Limits(
            arguments.whole("Inbox(max_body_bytes=…)", max_body_bytes, 1, MOST_BODY_BYTES, "bytes"),
            arguments.whole("Inbox(max_json_bytes=…)", max_json_bytes, 1, MOST_BODY_BYTES, "bytes"),
            arguments.whole("Inbox(max_header_bytes=…)", max_header_bytes, 1, MAX_HEADER_BYTES, "bytes"),
        )
        self.amqp_url = amqp_url
        self._missing_id = missing_id
        if trust is not None:
            arguments.instance("Inbox(trust=…)", trust, Trust, "Trust({source: Sender(…)})")
        if encryption is not None:
            arguments.instance("Inbox(encryption=…)", encryption, Encryption, "a key is given as Encryption(key)")
        self._trust = trust
        self._encryption = encryption
        self._error_exchange = error_exchange
        self._clock = clock or SystemClock()
        self._chance = chance
        self._registry = Registry()
        self._consumer: Consumer | None = None
        self._waits: str | None = None  # for what, while `running` waits for it
        self._ended: str | None = None  # by what, where nobody had asked for it

    def handler(
        self,
        type: str,  # noqa: A002 - the word for it
        *,
        queue: str | Queue,
        retry: Retry | int | None = None,
        timeout: Seconds | None = 30.0,
        consumer: str | None = None,
        group: int | None = None,
    ) -> Callable[[F], F]:
        """Register an ``async def`` for the messages of a type from a queue; type ``"*"`` takes all that remain.

        Its parameters are supplied by annotation: ``Message``, ``AsyncSession``, and the event as dict, list, str,
        bytes, a dataclass, a ``msgspec.Struct`` or a pydantic model. A list handler asks for ``list[Message]``, or for
        ``list[Event]`` where Event is a dict, dataclass or model, or for both, which then correspond; it gets a group
        of messages at once, in order, and only those that are new. The function itself is returned unchanged.

        **A handler may be executed again for a message it has been executed for**, after what it wrote was rolled back.
        Messages share a transaction, up to ``group`` of them; if anything goes wrong in it, all of it is rolled back,
        and each message is handled again in a transaction of its own. That spends no attempt of ``retry``, and the
        effect in the database happens once; what a handler does elsewhere can happen again. Groups grow only while
        handlers are quick, so handlers that wait for other services run singly and side by side.

        :param queue: its name, or the Queue.
        :param retry: how often it is tried before the message goes to the error exchange, as a Retry or a number of
            attempts; 3 times by default.
        :param timeout: seconds for one attempt, or a timedelta. It is cancelled then, rolled back, and counts as
            failed.
        :param consumer: under which name these messages are remembered, if not under the inbox's.
        :param group: at most so many messages share a transaction: 50 by default, 200 for a list handler. 1 gives each
            message a transaction of its own.
        :raises HandlerRefused: it could never be called, an argument here cannot be meant, or it contradicts another
            handler.
        """
        with _refusing():
            arguments.text('handler(type), the type of the messages or "*" for all that remain,', type)
            if consumer is not None:
                arguments.text("handler(consumer=…)", consumer)
            if timeout is not None:
                timeout = arguments.seconds("handler(timeout=…), where None means no limit,", timeout, positive=True)
            if group is not None:
                arguments.whole("handler(group=…)", group, 1, MOST, "messages")
            policy = Retry.of("handler(retry=…)", retry, Retry())
            source = checked_name("queue", arguments.named(queue, Queue), reserved=True)

        def register(function: F) -> F:
            if self._consumer is not None and source not in self.queues:
                raise HandlerRefused(
                    f"handler for queue {source!r}: inbox {self.name!r} runs already and consumes {self.queues}; "
                    "register the handlers of a further queue before it runs"
                )
            wanted = parameters(function, getattr(self.sessions, "class_", AsyncSession))
            self._registry.add(
                Handler(
                    type=type,
                    queue=source,
                    consumer=consumer or self.name,
                    function=function,
                    retry=policy,
                    timeout=timeout,
                    parameters=wanted,
                    group=group or (GROUP_OF_LISTS if wanted.lists else GROUP),
                )
            )
            return function

        return register

    @property
    def queues(self) -> list[str]:
        """The queues that have handlers."""
        return self._registry.queues

    def live(self) -> str | None:
        """None while all is well, otherwise what is wrong: then the process should be restarted. An inbox that
        ``running`` has seen ending is not well."""
        return self._consumer.live() if self._consumer is not None else self._ended

    def ready(self) -> str | None:
        """None while this inbox consumes all its queues and does not pause, otherwise what keeps it from that."""
        return self._consumer.ready() if self._consumer is not None else self._ended or self._waits or "not running"

    async def run(
        self,
        amqp_url: Url | None = None,
        stop: asyncio.Event | None = None,
        *,
        started: Callable[[], None] = lambda: None,
        prefetch: int | None = None,
        concurrency: int | None = None,
        drain: Seconds | None = None,
        heartbeat: Seconds | None = None,
    ) -> None:
        """Consume until ``stop`` is set or this call is cancelled, then drain.

        ``started`` is called once all queues are consumed. A database or a broker that goes away later is waited for.
        A function in place of the URL is asked before each new connection: for a password that is rotated.

        :raises SchemaError: relmsg's tables are missing, older or newer.
        :raises QueueMissing: a queue does not exist.
        :raises DatabaseAway, BrokerAway, AccessRefused: a service does not answer, or refuses, at the start.
        :raises UsageError: there is no handler, or no URL, or this inbox runs already; its sessions have no
            PostgreSQL, or work in AUTOCOMMIT, where a failed handler's writes would stay.
        """
        settled = self._require_runnable("run", amqp_url, prefetch, concurrency, drain, heartbeat)
        if not self.queues:
            raise UsageError(f"inbox {self.name!r} has no handler: register one with @inbox.handler(type, queue=…)")
        if stop is not None:
            arguments.instance("run(stop=…)", stop, asyncio.Event)
        arguments.function("run(started=…)", started)
        self._require_idle()
        await self._require_tables()
        self._require_idle()  # and is still
        self._ended = None
        self._consumer = self._assemble(*settled)
        # In a task of its own: there, a CancelledError that nobody asked for is known to come from the AMQP library.
        # What ends it is an event of its own: the caller's may belong to others too, and is only looked at.
        ending = asyncio.Event()
        running = asyncio.create_task(self._consumer.run(ending, started), name=f"inbox {self.name}")
        pruning = Background(f"inbox {self.name}: pruner", self._pruner().run)
        pruning.start()
        told = None if stop is None else asyncio.create_task(_passed_on(stop, ending))
        if told is not None:  # whoever cancels tasks that are not theirs ends the inbox, and not only the way to end it
            told.add_done_callback(lambda _: ending.set())
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                ending.set()
                await running
            raise
        finally:
            running.cancel()
            await pruning.stop()  # it gives its connection back
            if told is not None:
                told.cancel()
            self._consumer = None

    def running(
        self,
        amqp_url: Url | None = None,
        *,
        wait_for_services: bool | Seconds = False,
        prefetch: int | None = None,
        concurrency: int | None = None,
        drain: Seconds | None = None,
        heartbeat: Seconds | None = None,
    ) -> Running[Inbox]:
        """Consume while a block runs, inside an application: ``async with inbox.running(amqp_url): …``.

        Entering returns once all queues are consumed, or raises what ``run`` raises. With ``wait_for_services`` a
        database or a broker that does not answer is waited for: True without limit, otherwise for so many seconds (or a
        timedelta); the log says so when the wait begins and ends. A missing queue, missing tables and a refused login
        are raised at once all the same. Leaving drains, also after an error in the block.

        If the inbox ends by itself, which a fault does and a service that goes away does not, the log says so, ``live``
        and ``ready`` say so from then on, and the task in the block is cancelled and gets what ended the inbox as an
        exception on leaving.
        """
        given = arguments.flag_or_seconds("running(wait_for_services=…)", wait_for_services)
        self._require_runnable("running", amqp_url, prefetch, concurrency, drain, heartbeat)

        def run(stop: asyncio.Event, started: Callable[[], None]) -> Awaitable[None]:
            return self.run(
                amqp_url,
                stop,
                started=started,
                prefetch=prefetch,
                concurrency=concurrency,
                drain=drain,
                heartbeat=heartbeat,
            )

        return Running(self, self.name, run, patience=given, tell=self._told, clock=self._clock, chance=self._chance)

    def _told(self, *, waits: str | None = None, ended: str | None = None) -> None:
        self._waits, self._ended = waits, ended

    def _require_runnable(
        self,
        call: str,
        amqp_url: Url | None,
        prefetch: int | None,
        concurrency: int | None,
        drain: Seconds | None,
        heartbeat: Seconds | None,
    ) -> tuple[Url, dict[str, int], int, float, float]:
        """What this call runs with: what it was given, else what the inbox was.

        :raises UsageError: one of them cannot be meant, or there is no URL.
        """
        url = self.amqp_url if amqp_url is None else amqp_url
        if url is None:
            raise UsageError(f"the inbox needs the broker's URL: {call}(amqp_url=…) or Inbox(…, amqp_url=…)")
        if callable(url):
            arguments.function(f"{call}(amqp_url)", url, "a URL, or a function without arguments that returns one")
        else:
            amqp_urls(arguments.text(f"{call}(amqp_url)", url, most=None))
        return (
            url,
            self._prefetch_of(self.prefetch if prefetch is None else _prefetch(f"{call}(prefetch=…)", prefetch)),
            self.concurrency if concurrency is None else _concurrency(f"{call}(concurrency=…)", concurrency),
            self.drain if drain is None else arguments.seconds(f"{call}(drain=…)", drain),
            self.heartbeat if heartbeat is None else _heartbeat(f"{call}(heartbeat=…)", heartbeat),
        )

    def _require_idle(self) -> None:
        if self._consumer is not None:
            raise UsageError(f"inbox {self.name!r} is running already")

    async def _require_tables(self) -> None:
        bind = self.sessions.kw.get("bind")
        if not isinstance(bind, AsyncEngine | None):
            return  # a connection that somebody else works on as well
        await require_transactions(self.sessions, None if bind is None else bind.url)
        if bind is not None:
            await require_current(bind, self.schema)

    def _pruner(self) -> Pruner:
        consumers = self._registry.consumers
        return Pruner(self.sessions, Pruning(self.schema), consumers, self.dedup_window, self._clock, self._chance)

    def _prefetch_of(self, told: int | None) -> dict[str, int]:
        """For each queue what was told, or what keeps its groups full."""
        largest = self._registry.largest_group
        return {queue: told or min(MOST, max(PREFETCH, largest(queue) * GROUPS_AHEAD)) for queue in self.queues}

    def _assemble(
        self, url: Url, prefetch: dict[str, int], concurrency: int, drain: float, heartbeat: float
    ) -> Consumer:
        rest, store = Rest(Progress(self._clock)), Store(self.schema)
        database = Gate(f"{self.name}, database", rest=rest, clock=self._clock, chance=self._chance)
        errors = Gate(f"{self.name}, error exchange", rest=rest, clock=self._clock, chance=self._chance)
        self.metrics.watch([database, errors])

        urls = (lambda: amqp_urls(url())) if callable(url) else amqp_urls(url)

        def connection(purpose: str) -> Connection:
            name = f"{self.name}: {purpose}"
            return Connection(urls, name=name, heartbeat=heartbeat, clock=self._clock, chance=self._chance)

        publishing = connection("errors")
        slots = Slots(concurrency, rest)
        worker = Worker(
            attempts=Attempts(self.sessions, store, database, self.metrics, rest, self._clock, self._chance),
            starts=Starts(self.sessions, store),
            errors=ErrorExchange(publishing, self._error_exchange),
            database=database,
            error_exchange=errors,
            slots=slots,
            metrics=self.metrics,
        )
        together = Together(
            groups=Groups(self.sessions, store, self.metrics, self._clock),
            database=database,
            error_exchange=errors,
            slots=slots,
            metrics=self.metrics,
        )

        def intake(fault: Callable[[BaseException], None]) -> Intake:
            return Intake(
                self.name,
                self._registry,
                self._missing_id,
                worker,
                together,
                self.metrics,
                concurrency=concurrency,
                fault=fault,
                trust=self._trust,
                encryption=self._encryption,
                limits=self.limits,
            )

        return Consumer(
            self.name,
            {queue: connection(queue) for queue in self.queues},
            worker,
            intake,
            publishing,
            rest,
            prefetch=prefetch,
            drain=drain,
            clock=self._clock,
            trial=writing(worker.attempts.refusals, self.name),
        )


@contextmanager
def _refusing() -> Iterator[None]:
    """A wrong argument of a handler is the handler refused."""
    try:
        yield
    except UsageError as error:
        raise HandlerRefused(str(error)) from error


async def _passed_on(stop: asyncio.Event, ending: asyncio.Event) -> None:
    await stop.wait()
    ending.set()


def _prefetch(name: str, value: int) -> int:
    return arguments.whole(f"{name}, without which the broker would send the whole queue at once,", value, 1, MOST)


def _concurrency(name: str, value: int) -> int:
    return arguments.whole(name, value, 1, 10_000, "handlers")


def _heartbeat(name: str, value: Seconds) -> float:
    return arguments.seconds(name, value, least=1.0, most=MOST)


def _window(name: str, value: Seconds) -> timedelta:
    return timedelta(seconds=arguments.seconds(name, value, least=60.0, most=MOST_WINDOW_SECONDS))
