"""Publishes whatever bytes one likes as content header and body: AMQP 0-9-1 written by hand."""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
FRAME_MAX = 131_072
WITHIN = 30.0
FLAGS = {
    "content_type": 15, "content_encoding": 14, "headers": 13, "delivery_mode": 12, "priority": 11,
    "correlation_id": 10, "reply_to": 9, "expiration": 8, "message_id": 7, "timestamp": 6, "type": 5, "user_id": 4,
    "app_id": 3,
}  # fmt: skip


def short(raw: bytes) -> bytes:
    """A short string."""
    return bytes((len(raw),)) + raw


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """A field table of names and values, each value behind the letter of its type."""
    whole = b"".join(short(name) + value for name, value in entries)
    return struct.pack(">I", len(whole)) + whole


def nested(depth: int) -> bytes:
    """A table in a table in a table, as a value."""
    value = b"t\x01"
    for _ in range(depth):
        value = b"F" + table((b"a", value))
    return value


def properties(**given: bytes) -> bytes:
    """The flags and values behind a body size: strings without their length, all else as it is encoded."""
    flags, values = 0, b""
    for name, bit in FLAGS.items():
        if name in given:
            flags |= 1 << bit
            raw = given[name]
            values += raw if name in ("headers", "delivery_mode", "priority", "timestamp") else short(raw)
    return struct.pack(">H", flags) + values


class RawPublisher:
    """One connection in confirm mode; after the broker has closed it, the next publish makes a new one."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._tag = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    async def publish(self, queue: str, told: bytes, body: bytes = b"{}") -> bool:
        """Put a message into a queue: ``told`` is what stands behind the body size in its content header. Whether the
        broker has taken it; it may close the connection instead."""
        async with asyncio.timeout(WITHIN):
            if self._writer is None:
                await self._open()
            assert self._writer is not None
            self._tag += 1
            target = short(b"") + short(queue.encode()) + b"\0"
            self._send(METHOD, 1, struct.pack(">HHH", 60, 40, 0) + target)
            self._send(HEADER, 1, struct.pack(">HHQ", 60, 0, len(body)) + told)
            for start in range(0, len(body), FRAME_MAX - 8):
                self._send(BODY, 1, body[start : start + FRAME_MAX - 8])
            try:
                await self._writer.drain()
                return await self._is_acked()
            except OSError:
                self._drop()
                return False

    async def _is_acked(self) -> bool:
        while True:
            try:
                kind, payload = await self._frame()
            except asyncio.IncompleteReadError:
                break
            method = struct.unpack_from(">HH", payload) if kind == METHOD else None
            if method == (60, 80) and struct.unpack_from(">Q", payload, 4)[0] == self._tag:
                return True
            if method in ((60, 120), (20, 40), (10, 50)):  # nack, channel closed, connection closed
                break
        self._drop()
        return False

    async def _open(self) -> None:
        url, self._tag = self._url, 0
        self._reader, self._writer = await asyncio.open_connection(url.hostname, url.port or 5672)
        self._writer.write(b"AMQP\0\0\x09\x01")
        await self._until(10, 10)
        login = f"\0{unquote(url.username or 'guest')}\0{unquote(url.password or 'guest')}".encode()
        said = table() + short(b"PLAIN") + struct.pack(">I", len(login)) + login + short(b"en_US")
        self._send(METHOD, 0, struct.pack(">HH", 10, 11) + said)
        await self._until(10, 30)
        self._send(METHOD, 0, struct.pack(">HHHIH", 10, 31, 2047, FRAME_MAX, 0))
        self._send(METHOD, 0, struct.pack(">HH", 10, 40) + short(unquote(url.path[1:] or "/").encode()) + b"\0\0")
        await self._until(10, 41)
        self._send(METHOD, 1, struct.pack(">HH", 20, 10) + b"\0")
        await self._until(20, 11)
        self._send(METHOD, 1, struct.pack(">HHB", 85, 10, 0))
        await self._until(85, 11)

    async def _until(self, *method: int) -> None:
        while True:
            kind, payload = await self._frame()
            if kind == METHOD and struct.unpack_from(">HH", payload) == method:
                return

    async def _frame(self) -> tuple[int, bytes]:
        assert self._reader is not None
        kind, _, size = struct.unpack(">BHI", await self._reader.readexactly(7))
        return kind, (await self._reader.readexactly(size + 1))[:-1]

    def _send(self, kind: int, channel: int, payload: bytes) -> None:
        assert self._writer is not None
        self._writer.write(struct.pack(">BHI", kind, channel, len(payload)) + payload + END)

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
