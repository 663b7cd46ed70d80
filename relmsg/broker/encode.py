"""The bytes of a publish, packed by hand.

pamqp makes an object, an attribute loop and a dispatch for each property. The relay encodes tens of thousands of
messages a second, so the three frames are packed here. A property test holds that pamqp reads from them what was to be
sent, for any legal message; the types of header values are those of ``relmsg.amqp.encode_table``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from relmsg.amqp.encode_table import encode_value
from relmsg.broker.frame import BODY, END, HEAD, HEADER, METHOD, OVERHEAD

PUBLISH_FRAME = struct.Struct(">BHIHHH")
CONTENT = struct.Struct(">HHQH")
MANDATORY = b"\x01"
BASIC, PUBLISH = 60, 40

# AMQP 0-9-1, 4.2.6.1: one flag a property, the first one highest; the order of the values is that of the flags.
CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE, PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
CORRELATION_ID, REPLY_TO, EXPIRATION, MESSAGE_ID, TIMESTAMP, TYPE, USER_ID, APP_ID, CLUSTER_ID = (
    1 << 10,
    1 << 9,
    1 << 8,
    1 << 7,
    1 << 6,
    1 << 5,
    1 << 4,
    1 << 3,
    1 << 2,
)
TIME = struct.Struct(">Q")
SIZE = struct.Struct(">I")
KEY_HEADER = "relmsg-key"


@lru_cache(maxsize=4096)
def method_frame(channel: int, exchange: str, routing_key: str) -> bytes:
    """The frame of a mandatory ``basic.publish``.

    :raises UnicodeEncodeError, ValueError: a name cannot be encoded, or takes over 255 bytes.
    """
    target = short(exchange) + short(routing_key) + MANDATORY
    return PUBLISH_FRAME.pack(METHOD, channel, 6 + len(target), BASIC, PUBLISH, 0) + target + END


def content_header(
    body_size: int,
    *,
    message_id: str,
    delivery_mode: int | None,
    priority: int | None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    table: bytes = b"",
    correlation_id: str | None = None,
    reply_to: str | None = None,
    expiration: str | None = None,
    timestamp: int | None = None,
    type: str | None = None,  # noqa: A002 - AMQP's word
    user_id: str | None = None,
    app_id: str | None = None,
    cluster_id: str | None = None,
) -> bytes:
    """The payload of a content header frame; None and empty properties are left out, and so is an empty table.

    :raises Exception: a value cannot be encoded; of five families, UnicodeEncodeError to struct.error.
    """
    flags = MESSAGE_ID
    parts = []
    if content_type:
        flags |= CONTENT_TYPE
        parts.append(_known(content_type))
    if content_encoding:
        flags |= CONTENT_ENCODING
        parts.append(_known(content_encoding))
    if table:
        flags |= HEADERS
        parts.append(table)
    if delivery_mode is not None:
        flags |= DELIVERY_MODE
        parts.append(bytes((delivery_mode,)))
    if priority is not None:
        flags |= PRIORITY
        parts.append(bytes((priority,)))
    if correlation_id:
        flags |= CORRELATION_ID
        parts.append(short(correlation_id))
    if reply_to:
        flags |= REPLY_TO
        parts.append(short(reply_to))
    if expiration:
        flags |= EXPIRATION
        parts.append(short(expiration))
    parts.append(short(message_id))
    if timestamp is not None:
        flags |= TIMESTAMP
        parts.append(TIME.pack(timestamp))
    if type:
        flags |= TYPE
        parts.append(_known(type))
    if user_id:
        flags |= USER_ID
        parts.append(_known(user_id))
    if app_id:
        flags |= APP_ID
        parts.append(_known(app_id))
    if cluster_id:
        flags |= CLUSTER_ID
        parts.append(_known(cluster_id))
    return CONTENT.pack(BASIC, 0, body_size, flags) + b"".join(parts)


class Shape(NamedTuple):
    """All of a content header that many messages have in common; made by ``shape``."""

    flags: int
    head: bytes
    modes: bytes
    tail: bytes

    def header(self, body_size: int, table: bytes, message_id: str, timestamp: int) -> bytes:
        """The payload of a content header frame, the same as that of ``content_header``."""
        return b"".join(
            (
                CONTENT.pack(BASIC, 0, body_size, self.flags | HEADERS if table else self.flags),
                self.head,
                table,
                self.modes,
                short(message_id),
                TIME.pack(timestamp),
                self.tail,
            )
        )


def shape(
    *,
    delivery_mode: int,
    priority: int,
    content_type: str | None,
    content_encoding: str | None,
    type: str | None,  # noqa: A002 - AMQP's word
    app_id: str | None,
) -> Shape:
    """What the content headers of messages with these properties share, an id and a time besides.

    :raises UnicodeEncodeError, ValueError: a value cannot be encoded, or takes over 255 bytes.
    """
    flags = DELIVERY_MODE | PRIORITY | MESSAGE_ID | TIMESTAMP
    head = tail = b""
    for flag, value in ((CONTENT_TYPE, content_type), (CONTENT_ENCODING, content_encoding)):
        if value:
            flags |= flag
            head += short(value)
    for flag, value in ((TYPE, type), (APP_ID, app_id)):
        if value:
            flags |= flag
            tail += short(value)
    return Shape(flags, head, bytes((delivery_mode, priority)), tail)


def frames(channel: int, frame_max: int, exchange: str, routing_key: str, header: bytes, body: bytes) -> bytes:
    """All frames of one publish: method, header, and the body in pieces that the broker takes."""
    parts = [
        method_frame(channel, exchange, routing_key),
        HEAD.pack(HEADER, channel, len(header)),
        header,
        END,
    ]
    room = frame_max - OVERHEAD
    for start in range(0, len(body), room):
        piece = body[start : start + room] if len(body) > room else body
        parts += (HEAD.pack(BODY, channel, len(piece)), piece, END)
    return b"".join(parts)


def table(headers: Mapping[str, Any], key: str | None = None) -> bytes:
    """The field table of these headers and, under its own name, the ordering key; nothing if there is nothing in it.

    Entries are sorted by name, as pamqp has it.

    :raises Exception: as ``content_header``.
    """
    return joined(*entries(headers), key)


def entries(headers: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The encoded headers, those before and those after the place of the ordering key."""
    before: list[bytes] = []
    after: list[bytes] = []
    for name in sorted(headers):
        value = headers[name]
        if value.__class__ is str:
            raw = value.encode()
            entry = _known(name) + b"S" + SIZE.pack(len(raw)) + raw
        else:
            entry = _known(name) + encode_value(value)
        (before if name < KEY_HEADER else after).append(entry)
    return b"".join(before), b"".join(after)


def joined(before: bytes, after: bytes, key: str | None) -> bytes:
    """The table of encoded headers and an ordering key."""
    if key is not None:
        raw = key.encode()
        before += _KEY_NAME + SIZE.pack(len(raw)) + raw
    whole = before + after
    return SIZE.pack(len(whole)) + whole if whole else b""


def short(value: str) -> bytes:
    """An AMQP short string. :raises ValueError: it takes over 255 bytes."""
    raw = value.encode()
    return bytes((len(raw),)) + raw


_known = lru_cache(maxsize=4096)(short)  # types, sources, content types and names of headers are few
_KEY_NAME = short(KEY_HEADER) + b"S"
