"""Deliveries out of frames, many for one read of the socket, without a task, a future or a write for each."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from relmsg.broker.acks import Ack
from relmsg.broker.decode import Properties, headers, moment, properties
from relmsg.broker.encode import FRAME_END, KEY_HEADER
from relmsg.broker.tap import FRAME
from relmsg.message import Message

METHOD, HEADER, BODY = 1, 2, 3  # frame types
DELIVER = b"\x00\x3c\x00\x3c"
CLOSE = b"\x00\x14\x00\x28"
TAG = struct.Struct(">QB")
BODY_SIZE = struct.Struct(">Q")
ACK = struct.Struct(">HHQB")
BASIC, BASIC_ACK = 60, 80

NOTHING = Properties(None, None, b"", None, None, None, None, None, None, None)

Arrived = Callable[[int, bool, Message, "str | None", "Exception | None"], None]
"""Told of each delivery: tag, whether it is redelivered, the message, its expiration, and what could not be read."""


class Receiving:
    """Puts the frames of one channel together to messages. Everything but deliveries is left to aiormq."""

    def __init__(self, arrived: Arrived, closed: Callable[[], None]) -> None:
        self._arrived = arrived
        self._closed = closed
        self._deliver: tuple[int, bool, str, str] | None = None
        self._header = b""
        self._left = 0
        self._pieces: list[bytes] = []

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Called by the tap with each frame of the channel."""
        if kind == METHOD:
            method = data[start : start + 4]
            if method != DELIVER:
                if method == CLOSE:
                    self._closed()  # aiormq answers in a moment; an ack behind its Close-Ok would cost the connection
                return False
            position = start + 5 + data[start + 4]  # the consumer tag: there is one consumer on the channel
            tag, redelivered = TAG.unpack_from(data, position)
            end = position + 10 + data[position + 9]
            exchange = _name(data[position + 10 : end])
            routing_key = _name(data[end + 1 : end + 1 + data[end]])
            self._deliver = (tag, bool(redelivered & 1), exchange, routing_key)
            return True
        if self._deliver is None:
            return False
        if kind == HEADER:
            self._header = data[start:stop]
            self._left = BODY_SIZE.unpack_from(data, start + 4)[0]
            if not self._left:
                self._complete(b"")
            return True
        if kind == BODY:
            self._left -= stop - start
            if self._left > 0:
                self._pieces.append(data[start:stop])
            elif self._pieces:
                self._pieces.append(data[start:stop])
                body, self._pieces = b"".join(self._pieces), []
                self._complete(body)
            else:
                self._complete(data[start:stop])
            return True
        return False

    def _complete(self, body: bytes) -> None:
        assert self._deliver is not None
        (tag, redelivered, exchange, routing_key), self._deliver = self._deliver, None
        message, expiration, fault = message_of(self._header, exchange, routing_key, body)
        self._arrived(tag, redelivered, message, expiration, fault)


def message_of(
    header: bytes, exchange: str, routing_key: str, body: bytes
) -> tuple[Message, str | None, Exception | None]:
    """The message of a content header and a body, its expiration, and the error of what could not be read.

    Nothing is guessed: a message without an id has an empty one. Headers keep what the broker put into them. What can
    not be read is left out, strings that are not UTF-8 show the bytes at fault as replacement characters.
    """
    came, fault = _properties(header)
    found: dict[str, Any] = {}
    timestamp = None
    try:
        if came.table:
            found = headers(came.table)
        if came.timestamp is not None:
            timestamp = moment(came.timestamp)
    except Exception as error:  # noqa: BLE001 - of several families, pamqp's among them; the message is at fault
        fault = error
    key = found.get(KEY_HEADER) if found else None
    message = Message(
        type=came.type,
        body=body,
        exchange=exchange,
        routing_key=routing_key,
        ordering_key=key if isinstance(key, str) and key else None,
        headers=found,
        id=came.message_id or "",
        source=came.app_id,
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        correlation_id=came.correlation_id,
        reply_to=came.reply_to,
        timestamp=timestamp,
    )
    return message, came.expiration, fault


def _properties(header: bytes) -> tuple[Properties, Exception | None]:
    try:
        return properties(header), None
    except Exception as error:  # noqa: BLE001 - struct, index, value and Unicode errors: no content header as it should be
        try:
            return properties(header, errors="replace"), error
        except Exception:  # noqa: BLE001 - as above; not even its structure can be read
            return NOTHING, error


def ack_frames(channel: int, acks: Sequence[Ack]) -> bytes:
    """The frames of these acks."""
    start = FRAME.pack(METHOD, channel, ACK.size)
    return b"".join(start + ACK.pack(BASIC, BASIC_ACK, tag, multiple) + FRAME_END for tag, multiple in acks)


@lru_cache(maxsize=4096)
def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
