"""One AMQP connection that is kept up: several hosts, backoff with full jitter, a generation for every new one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import aiormq
from yarl import URL

from relmsg.broker.answer import answer, really_cancelled
from relmsg.broker.tap import Tap, TappedTransport, fits
from relmsg.clock import Clock, SystemClock
from relmsg.errors import AccessRefused, BrokerAway, RelmsgError
from relmsg.retry import full_jitter
from relmsg.runtime.background import Background
from relmsg.settings import require_broker_tls
from relmsg.tls import tls_required

log = logging.getLogger(__name__)

LARGEST_FRAME = 131_072  # bytes; what RabbitMQ agrees to unless configured otherwise


class Connection:
    """One AMQP connection that is kept up until it is closed.

    After a loss it is made again, host after host in turn, with exponential backoff and full jitter (0.1 s up to 10 s),
    for ever: a broker that is away is waited for, and so is a password that was rotated. Where ``urls`` is a function
    it is asked before each of them; what it raises then is logged, and the last answer holds. ``generation`` grows with
    every new connection; whatever was received on an older one can no longer be acked.

    Use it as a context manager. Entering makes the first connection, and that one fails at once when *no* host can be
    reached, so that a wrong URL is told and not waited for.

    ``bulk=False`` has everything go through aiormq message by message; by default that is so only where this version
    of aiormq is unknown, or ``RELMSG_BULK=off`` is set for the process.

    :raises BrokerAway: on entering, when no host answers.
    :raises AccessRefused: on entering, when the login is refused.
    """

    def __init__(
        self,
        urls: Sequence[str] | Callable[[], Sequence[str]],
        *,
        name: str = "relmsg",
        heartbeat: float = 10.0,
        connect_timeout: float = 10.0,
        bulk: bool | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.generation = 0
        self.reconnects = 0
        self.blocked_seconds = 0.0
        self._given = urls
        self._options = {"name": name, "heartbeat": str(int(heartbeat))}
        self._urls = self._read()
        self._next = 0
        self._timeout = connect_timeout
        self._clock = clock or SystemClock()
        self._chance = chance
        self._current: aiormq.Connection | None = None
        self._bulk = fits() if bulk is None else bulk
        self._tap: Tap | None = None
        self._transport: asyncio.Transport | None = None
        self._up = asyncio.Event()
        self._keeping = Background(f"{self.name}: keep the connection up", self._keep_up, chance)
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._first()
        self._keeping.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._up.is_set() and self._current is not None and not self._current.is_closed

    @property
    def blocked(self) -> bool:
        """Whether the broker has told us to stop publishing (memory or disk alarm).

        aiormq has no callback for this: its ``ready()`` is asked, and left, without waiting.
        """
        if self._current is None:
            return False
        question = self._current.ready()
        try:
            question.send(None)
        except StopIteration:
            return False
        finally:
            question.close()
        return True

    async def require_unblocked(self) -> None:
        """Return if the broker lets us publish. :raises BrokerAway: it does not, until its alarm is over."""
        if self.blocked:
            await asyncio.sleep(0)  # a caller that tries again at once must not keep the end of the alarm from us
            raise BrokerAway("RabbitMQ has blocked publishing (memory or disk alarm)")

    async def channel(self, *, confirms: bool = False, within: float = 10.0) -> aiormq.Channel:
        """Open a channel, waiting up to ``within`` seconds for a connection.

        :raises BrokerAway: there is no connection in time, or it is blocked by the broker.
        """
        try:
            async with asyncio.timeout(within):
                current = await self._open_connection()
        except TimeoutError as error:
            raise BrokerAway(f"no connection to RabbitMQ for {within:g} s") from error
        await self.require_unblocked()
        opened = await answer(current.channel(publisher_confirms=confirms, on_return_raises=True), within=within)
        if not isinstance(opened, aiormq.Channel):
            raise TypeError(f"aiormq made a {type(opened).__name__} where its Channel was expected")
        return opened

    @property
    def frame_max(self) -> int:
        """The largest frame to write, in bytes: the broker's limit, at most 128 KiB, also where it has none (0)."""
        agreed = self._current.connection_tune.frame_max if self._current is not None else 0
        return min(agreed or LARGEST_FRAME, LARGEST_FRAME)

    @property
    def tap(self) -> Tap | None:
        """Where frames are written and read past aiormq; None where that is not to be done."""
        return self._tap if self._bulk and self._tap is not None and self._tap.frames else None

    def abort(self) -> None:
        """Cut the socket at once, leaving unsent bytes behind; a new connection follows.

        This is the only safe end after a missed confirm deadline: a frozen broker would otherwise execute, once it
        thaws, every publish that still lies in the socket, the resent ones included (reliability P9). For the same
        reason the socket ends by a reset (linger 0), which also empties the buffers of both kernels.
        """
        if self._transport is not None:
            self._up.clear()  # aiormq notices a little later; until then nothing may be written to it any more
            with contextlib.suppress(OSError):
                stream = self._transport.get_extra_info("socket")
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def close(self) -> None:
        """End the connection for good; a broker that does not answer is given two seconds."""
        self._closed = True
        await self._keeping.stop()
        await self._drop()

    async def _first(self) -> None:
        errors: list[RelmsgError] = []
        for _ in self._urls:
            try:
                return await self._connect()
            except RelmsgError as error:
                errors.append(error)
        raise next((error for error in errors if isinstance(error, AccessRefused)), errors[-1])

    async def _connect(self) -> None:
        if self._next:
            self._reread()
        url = self._urls[self._next % len(self._urls)]
        self._next += 1
        opening = aiormq.Connection(url, transport_factory=TappedTransport(self._opened))
        try:
            await answer(opening.connect(), within=self._timeout)
        except AccessRefused:
            raise
        except RelmsgError as error:
            raise BrokerAway(f"RabbitMQ at {url.host}:{url.port or _port(url)} is away: {error}") from error
        self._current = opening
        self.generation += 1
        self._up.set()
        log.info("connected to RabbitMQ at %s:%s as %s", url.host, url.port or _port(url), self.name)

    def _read(self) -> list[URL]:
        urls = self._given() if callable(self._given) else self._given
        require_broker_tls(urls, required=tls_required())
        return [URL(url).update_query(self._options) for url in urls]

    def _reread(self) -> None:
        if callable(self._given):
            try:
                self._urls = self._read()
            except RelmsgError as error:
                log.warning("%s: the broker's URL cannot be read anew, the one before holds: %s", self.name, error)

    def _opened(self, tap: Tap, transport: asyncio.Transport) -> None:
        self._tap, self._transport = tap, transport

    async def _open_connection(self) -> aiormq.Connection:
        while True:
            await self._up.wait()
            if self._current is not None and not self._current.is_closed:
                return self._current
            await asyncio.sleep(0)  # lost a moment ago, and _keep_up has yet to hear of it

    async def _keep_up(self) -> None:
        while not self._closed:
            await self._until_lost()
            self._up.clear()
            self._current = None
            log.warning("%s: the connection to RabbitMQ was lost, connecting again", self.name)
            failures = 0
            while self._current is None:
                await self._clock.sleep(full_jitter(failures + 1, 0.1, 10.0, self._chance))
                try:
                    await self._connect()
                except RelmsgError as error:
                    failures += 1
                    log.warning("%s: %s", self.name, error)
                except asyncio.CancelledError:
                    if really_cancelled():
                        raise
                    failures += 1
            self.reconnects += 1

    async def _until_lost(self) -> None:
        current = self._current
        if current is None:
            return
        closing = current.closing
        while not closing.done():
            blocked = self.blocked
            await asyncio.wait({closing}, timeout=0.5)
            if blocked:
                self.blocked_seconds += 0.5
        with contextlib.suppress(Exception, asyncio.CancelledError):
            closing.exception()

    async def _drop(self) -> None:
        current, self._current = self._current, None
        self._up.clear()
        if current is None or current.is_closed:
            return
        # A task of its own: cancelled, aiormq's close() would go on waiting for the socket to take what is unsent.
        closing = asyncio.create_task(current.close(None))
        try:
            await asyncio.wait({closing}, timeout=2.0)
        finally:
            if not closing.done():
                self.abort()
        await asyncio.wait({closing}, timeout=0.5)
        if closing.done() and not closing.cancelled():
            closing.exception()


def _port(url: URL) -> int:
    return 5671 if url.scheme == "amqps" else 5672
