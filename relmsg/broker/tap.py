"""The tap: frames of our own channels, cut out of the stream before aiormq reads it.

aiormq reads every frame with three awaits, makes objects of it, and starts a task for each delivery: 95-170 us a
message (performance.md D). It does that on a StreamReader which it gets from a ``transport_factory``, a constructor
argument. So the socket can be read by us: whole frames of the channels that asked are handed to them synchronously,
many for one read of the socket, and all the rest, handshake, heartbeats, replies and closes, goes on to aiormq.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Protocol

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from relmsg.broker.frame import BODY, END, END_OCTET, HEAD, HEADER, HEARTBEAT, METHOD, OVERHEAD

FRAME_TYPES = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
MOST_BYTES = 64 * 1024 * 1024  # no broker of ours agrees on larger frames: whatever says so is not a frame
HEARTBEAT_FRAME = HEAD.pack(HEARTBEAT, 0, 0) + END
HEARTBEAT_SECONDS = 1.0

KNOWN_AIORMQ = ((7, 2), (8, 0))  # from, and below
SWITCH = "RELMSG_BULK"


def fits() -> bool:
    """Whether frames may be written and read past this version of aiormq, and nobody has switched that off."""
    if os.environ.get(SWITCH, "on").lower() in ("off", "0", "false", "no"):
        return False
    numbers = tuple(int(number) for number in re.findall(r"\d+", version("aiormq"))[:2])
    return KNOWN_AIORMQ[0] <= numbers < KNOWN_AIORMQ[1]


class Sink(Protocol):
    """Takes the frames of one channel."""

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """One frame: its payload is ``data[start:stop]``. True: it was meant for us; False: aiormq shall have it.

        Called in the middle of a read of the socket: note what came, and do the work later.
        """
        ...


TakeMany = Callable[[bytes, int, int], int]
"""Given data, a position and a channel: takes the frames from there on, as far as they are whole, of that channel and
as usual, and tells where the others begin. Those are left to ``Sink.take``."""


class Tap(asyncio.StreamReaderProtocol):
    """The protocol between one socket and aiormq's reader.

    Bytes that are not AMQP frames are not understood here, and from then on everything goes to aiormq, which knows what
    to say of them. A sink that raises ends the connection: what it could not take would be lost in silence.
    """

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.frames = 0
        self.trusted: bool | None = None
        """Whether bulk publishing has proven itself on this connection; None until it was tried."""
        self._loop = loop
        self._sinks: dict[int, Sink] = {}
        self._many: dict[int, TakeMany] = {}
        self._rest = b""
        self._understood = True
        self._passed_at = loop.time()
        self._reader = reader
        self._writer: asyncio.StreamWriter | None = None

    def writes_by(self, writer: asyncio.StreamWriter) -> None:
        """Remember the writer that belongs to this socket; aiormq uses the same one."""
        self._writer = writer

    def attach(self, channel: int, sink: Sink, take_many: TakeMany | None = None) -> None:
        """From now on the frames of this channel are offered to ``sink`` first, and many at once before that."""
        self._sinks[channel] = sink
        self._many.pop(channel, None)
        if take_many is not None:
            self._many[channel] = take_many

    def detach(self, channel: int, sink: Sink) -> None:
        """The channel is gone; its number may have a new owner already, who is left alone."""
        if self._sinks.get(channel) is sink:
            del self._sinks[channel]
            self._many.pop(channel, None)

    @property
    def is_open(self) -> bool:
        """Whether bytes can still be written."""
        return self._writer is not None and not self._writer.is_closing()

    def write(self, frames: bytes) -> None:
        """Write whole frames; between two calls aiormq may write its own. Nothing happens once the socket is closed."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames)

    async def drained(self) -> None:
        """Wait until the socket has taken most of what was written. :raises OSError: the connection is lost."""
        if self._writer is not None:
            await self._writer.drain()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what the socket had: cut, and pass on."""
        if not self._understood:
            self._reader.feed_data(data)
            return
        if self._rest:
            data = self._rest + data
        position = passed = 0
        size = len(data)
        sinks, many, unpack = self._sinks, self._many, HEAD.unpack_from
        while size - position >= OVERHEAD:
            kind, channel, length = unpack(data, position)
            end = position + OVERHEAD + length
            if end > size and kind in FRAME_TYPES and length <= MOST_BYTES:
                break
            if kind not in FRAME_TYPES or length > MOST_BYTES or data[end - 1] != END_OCTET:
                self._understood = False
                position = size
                break
            self.frames += 1
            sink = sinks.get(channel)
            taken = many[channel](data, position, channel) if channel in many else position
            if taken > position:
                if passed < position:
                    self._pass(data[passed:position])
                passed = end = taken
            elif sink is not None and sink.take(kind, data, position + HEAD.size, end - 1):
                if passed < position:
                    self._pass(data[passed:position])
                passed = end
            position = end
        if passed < position:
            self._pass(data if not passed and position == size else data[passed:position])
        elif passed:
            self._keep_alive()
        self._rest = data[position:]

    def eof_received(self) -> bool | None:
        """Called by the event loop when the broker has closed its side: aiormq shall see what it broke off."""
        self._pass_rest()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the socket is gone."""
        self._pass_rest()
        super().connection_lost(exc)

    def _pass_rest(self) -> None:
        rest, self._rest = self._rest, b""
        if rest and not self._reader.at_eof():
            self._reader.feed_data(rest)

    def _pass(self, data: bytes) -> None:
        self._passed_at = self._loop.time()
        self._reader.feed_data(data)

    def _keep_alive(self) -> None:
        """aiormq takes a connection for dead on which it reads nothing for long, and RabbitMQ sends no heartbeats while
        it sends other frames. When all of them are ours, aiormq is given a heartbeat now and then."""
        if self._loop.time() - self._passed_at >= HEARTBEAT_SECONDS:
            self._pass(HEARTBEAT_FRAME)


class TappedTransport(TransportFactory):
    """Opens the socket as aiormq does, with a tap in it."""

    def __init__(self, opened: Callable[[Tap, asyncio.Transport], None]) -> None:
        self._opened = opened

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. :raises AMQPConnectionError: nobody answers, or TLS cannot be agreed upon."""
        provider = options.pop("ssl_context_provider", None)
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        tap = Tap(reader, loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: tap, url.host or "", url.port or 0, ssl=context, **options
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        writer = asyncio.StreamWriter(transport, tap, reader, loop)
        tap.writes_by(writer)
        self._opened(tap, transport)
        return reader, writer
