"""A TCP proxy whose network fails on demand."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from types import TracebackType
from urllib.parse import urlsplit


class Mode(enum.Enum):
    """What becomes of the bytes of one direction."""

    PASS = "they arrive"
    BLACKHOLE = "they are held back, nobody is told; they arrive after all if the mode becomes PASS"
    DROP = "they are read and thrown away"


class Direction:
    """One direction of every connection through a proxy; set ``mode`` at any time."""

    def __init__(self) -> None:
        self._mode = Mode.PASS
        self._open = asyncio.Event()
        self._open.set()
        self.passed = 0
        self._left: int | None = None

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.BLACKHOLE:
            self._open.clear()
        else:
            self._open.set()

    def cut_after(self, count: int) -> None:
        """Let exactly ``count`` more bytes arrive, then end the connection that brings the next ones; once."""
        self._left = count

    async def opened(self) -> None:
        """Wait until it is no black hole."""
        await self._open.wait()

    async def admit(self, data: bytes) -> tuple[bytes, bool]:
        """What of ``data`` goes on, and whether the connection ends there."""
        await self._open.wait()
        if self._mode is Mode.DROP:
            return b"", False
        cut = self._left is not None and len(data) >= self._left
        if self._left is not None:
            data = data[: self._left]
            self._left = None if cut else self._left - len(data)
        self.passed += len(data)
        return data, cut


class Proxy:
    """Listens on a free port of 127.0.0.1 and hands on to ``host:port``.

    ``to_server`` and ``to_client`` are the two directions; they hold for the connections there are and for new ones.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.to_server = Direction()
        self.to_client = Direction()
        self.port = 0
        self.accepted = 0

    @classmethod
    def before(cls, url: str) -> Proxy:
        """A proxy before the server of a URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or {"amqp": 5672, "amqps": 5671}.get(parts.scheme, 5432))

    def through(self, url: str) -> str:
        """The same URL, leading through this proxy."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}").geturl()

    async def __aenter__(self) -> Proxy:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def accept(self) -> None:
        """Listen, after ``refuse`` again on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = int(self._server.sockets[0].getsockname()[1])

    async def refuse(self) -> None:
        """Refuse new connections; those there are go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    def blackhole(self) -> None:
        """Nothing arrives any more, in either direction, and nobody is told."""
        self.to_server.mode = self.to_client.mode = Mode.BLACKHOLE

    def heal(self) -> None:
        """Everything arrives again, also what a black hole has held back."""
        self.to_server.mode = self.to_client.mode = Mode.PASS

    def reset(self) -> None:
        """End every connection with a RST to both sides."""
        for pair in list(self._pairs):
            for writer in pair:
                _abort(writer)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(to_client)
            return
        pair = (to_client, to_server)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(client, to_client, to_server, self.to_server))
                both.create_task(_pump(server, to_server, to_client, self.to_client))
        finally:
            self._pairs.discard(pair)
            for writer in pair:
                writer.transport.abort()


async def _pump(
    source: asyncio.StreamReader, back: asyncio.StreamWriter, onward: asyncio.StreamWriter, direction: Direction
) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            data, cut = await direction.admit(data)
            if data:
                onward.write(data)
                await onward.drain()
            if cut:
                onward.close()  # not a RST: what was let through must arrive
                _abort(back)
                return
        await direction.opened()  # the end is not told either
        if onward.can_write_eof():
            onward.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN: lingering on, for no time."""
    peer = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
