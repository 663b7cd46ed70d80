"""Deliveries out of frames, many for one read of the socket, without a task, a future or a write for each."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from relmsg.amqp.decode_table import decode_table
from relmsg.amqp.moved_ids import MOVED_CORRELATION_ID, MOVED_IDS, MOVED_MESSAGE_ID, id_in
from relmsg.amqp.remarks import Remarks
from relmsg.amqp.times import moment_of, span_of
from relmsg.broker.acks import Ack, Nack
from relmsg.broker.decode import Values, readable, values
from relmsg.broker.encode import KEY_HEADER
from relmsg.broker.frame import BODY, END, END_OCTET, HEAD, HEADER, METHOD, OVERHEAD
from relmsg.message import Message

DELIVER = b"\x00\x3c\x00\x3c"
CLOSE = b"\x00\x14\x00\x28"
TAG = struct.Struct(">QB")
BODY_SIZE = struct.Struct(">Q")
ACK = struct.Struct(">HHQB")
BASIC, BASIC_ACK, BASIC_NACK = 60, 80, 120
REQUEUE = 2  # the second bit of a nack; the first is "multiple"


class _Draft:
    """A message whose fields are being set.

    A frozen dataclass sets each of its fields by a call. This has the same slots, so that Python lets it become a
    message once they are filled: a microsecond less.
    """

    __slots__ = Message.__slots__


_blank = _Draft.__new__

Arrived = Callable[[int, Message, "str | None", "Remarks | None"], None]
"""Told of each delivery: tag, the message, its expiration as it came, and remarks where there are any."""


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
            exchange, routing_key = _address(data[position + 9 : stop])
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

    def take_many(self, data: bytes, position: int, channel: int) -> int:
        """Called by the tap before ``take``: all deliveries that follow each other whole, each with its body in one
        frame. It says the same of them as ``take``, in one loop instead of three calls a message."""
        if self._deliver is not None:
            return position
        size, unpack, arrived = len(data), HEAD.unpack_from, self._arrived
        while size - position >= OVERHEAD:
            kind, number, length = unpack(data, position)
            method = position + HEAD.size
            properties_at = method + length + 1
            if kind != METHOD or number != channel or data[method : method + 4] != DELIVER:
                break
            if size - properties_at < OVERHEAD:
                break
            kind, number, length = unpack(data, properties_at)
            header_at = properties_at + HEAD.size
            body_at = header_at + length + 1
            if kind != HEADER or number != channel or size - body_at < OVERHEAD:
                break
            kind, number, length = unpack(data, body_at)
            start = body_at + HEAD.size
            end = start + length
            if (
                kind != BODY
                or number != channel
                or end >= size
                or BODY_SIZE.unpack_from(data, header_at + 4)[0] != length
            ):
                break
            if not data[properties_at - 1] == data[body_at - 1] == data[end] == END_OCTET:
                break
            tag_at = method + 5 + data[method + 4]
            tag, redelivered = TAG.unpack_from(data, tag_at)
            exchange, routing_key = _address(data[tag_at + 9 : properties_at - 1])
            message, expiration, remarks = message_of(
                data[header_at : body_at - 1], exchange, routing_key, data[start:end], redelivered & 1 == 1
            )
            arrived(tag, message, expiration, remarks)
            position = end + 1
        return position

    def _complete(self, body: bytes) -> None:
        assert self._deliver is not None
        (tag, redelivered, exchange, routing_key), self._deliver = self._deliver, None
        message, expiration, remarks = message_of(self._header, exchange, routing_key, body, redelivered)
        self._arrived(tag, message, expiration, remarks)


def message_of(
    header: bytes, exchange: str, routing_key: str, body: bytes, redelivered: bool = False
) -> tuple[Message, str | None, Remarks | None]:
    """The message of a content header and a body, its expiration as it came, and remarks where there are any.

    Nothing is guessed: a message without an id has an empty one. Headers keep what the broker put into them. What
    cannot be read is left out, and strings that are not UTF-8 show the bytes at fault as replacement characters; the
    remarks name both, and have a fault. A time that Python cannot tell is left out, with a remark and without a fault.
    """
    remarks: Remarks | None = None
    try:
        came: Values = values(header)
    except Exception as error:  # noqa: BLE001 - struct, index, value and Unicode errors: no content header as it should be
        remarks = Remarks()
        came = readable(header, error, remarks)
    (
        content_type,
        content_encoding,
        table,
        priority,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        number,
        type_,
        user_id,
        source,
        cluster_id,
    ) = came
    found: dict[str, Any] = {}
    key = timestamp = None
    try:
        if table:
            found = decode_table(table)
            key = found.get(KEY_HEADER)
        if number is not None:
            timestamp = moment_of(number)
    except Exception:  # noqa: BLE001 - of several families; read once more, with tolerance
        remarks = remarks or Remarks()
        found, timestamp = _tolerated(table, number, remarks)
        key = found.get(KEY_HEADER)
    if cluster_id is not None:
        remarks = remarks or Remarks()
        remarks.cluster_id = cluster_id
    if found and not found.keys().isdisjoint(MOVED_IDS):
        message_id = id_in(found, MOVED_MESSAGE_ID) or message_id
        correlation_id = id_in(found, MOVED_CORRELATION_ID) or correlation_id
    message: Any = _blank(_Draft)
    message.type = type_
    message.body = body
    message.exchange = exchange
    message.routing_key = routing_key
    message.ordering_key = key if key and isinstance(key, str) else None
    message.headers = found
    message.id = message_id or ""
    message.source = source
    message.content_type = content_type
    message.content_encoding = content_encoding
    message.correlation_id = correlation_id
    message.reply_to = reply_to
    message.expiration = span_of(expiration) if expiration else None
    message.timestamp = timestamp
    message.priority = priority
    message.user_id = user_id
    message.redelivered = redelivered
    message.__class__ = Message
    return message, expiration, remarks


def _tolerated(table: bytes, number: int | None, remarks: Remarks) -> tuple[dict[str, Any], datetime | None]:
    found = decode_table(table, remarks)
    try:
        return found, None if number is None else moment_of(number)
    except (ValueError, OverflowError, OSError):
        remarks.left_out("timestamp")
        return found, None


def ack_frames(channel: int, acks: Sequence[Ack | Nack]) -> bytes:
    """The frames of these acks and nacks."""
    start = HEAD.pack(METHOD, channel, ACK.size)
    return b"".join(
        start
        + (ACK.pack(BASIC, BASIC_ACK, *ack) if isinstance(ack, Ack) else ACK.pack(BASIC, BASIC_NACK, ack.tag, REQUEUE))
        + END
        for ack in acks
    )


@lru_cache(maxsize=4096)
def _address(raw: bytes) -> tuple[str, str]:
    """Exchange and routing key, two short strings."""
    end = 1 + raw[0]
    return raw[1:end].decode("utf-8", "replace"), raw[end + 1 : end + 1 + raw[end]].decode("utf-8", "replace")
