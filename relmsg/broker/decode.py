"""The bytes of a content header, read by hand.

pamqp makes an object, an attribute loop and a dispatch for each property, and one value that it cannot read costs the
whole connection (reliability B1). Here a property that cannot be read is a ``fault`` of its message alone. A property
test holds that both read the same from any header that pamqp can write.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import decode as pamqp_decode

from relmsg.broker.encode import (
    APP_ID,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    CORRELATION_ID,
    DELIVERY_MODE,
    EXPIRATION,
    HEADERS,
    MESSAGE_ID,
    PRIORITY,
    REPLY_TO,
    TIMESTAMP,
    TYPE,
    USER_ID,
)

FLAGS_AT = 12  # behind class, weight and body size
FLAGS = struct.Struct(">H")
SIZE = struct.Struct(">I")
TIME = struct.Struct(">Q")
MORE_FLAGS = 1
LONG_STRING = ord("S")
MOST_SECONDS = 0xFFFFFFFF  # pamqp and others read a larger number as milliseconds
NO_TABLE = b""


class Properties(NamedTuple):
    """What a content header says; ``table`` is its field table, still encoded and without its length."""

    content_type: str | None
    content_encoding: str | None
    table: bytes
    correlation_id: str | None
    reply_to: str | None
    expiration: str | None
    message_id: str | None
    timestamp: int | None
    type: str | None
    user_id: str | None
    app_id: str | None


def properties(header: bytes, *, errors: str = "strict") -> Properties:
    """The properties in the payload of a content header frame.

    ``errors`` is what becomes of strings that are not UTF-8, as in ``bytes.decode``.

    :raises UnicodeDecodeError: a string is not UTF-8, and ``errors`` is ``"strict"``.
    :raises ValueError, IndexError, struct.error: this is no content header.
    """
    data, position = header, FLAGS_AT + 2
    flags = FLAGS.unpack_from(data, FLAGS_AT)[0]
    if flags & MORE_FLAGS:
        raise ValueError("the content header has more flags than AMQP 0-9-1 has properties")
    content_type = content_encoding = correlation_id = reply_to = expiration = message_id = type_ = user_id = app_id = (
        None
    )
    table, timestamp = NO_TABLE, None
    if flags & CONTENT_TYPE:
        end = position + 1 + data[position]
        content_type = _known(data[position + 1 : end], errors)
        position = end
    if flags & CONTENT_ENCODING:
        end = position + 1 + data[position]
        content_encoding = _known(data[position + 1 : end], errors)
        position = end
    if flags & HEADERS:
        end = position + 4 + SIZE.unpack_from(data, position)[0]
        table = data[position + 4 : end]
        position = end
    if flags & DELIVERY_MODE:
        position += 1
    if flags & PRIORITY:
        position += 1
    if flags & CORRELATION_ID:
        end = position + 1 + data[position]
        correlation_id = data[position + 1 : end].decode("utf-8", errors)
        position = end
    if flags & REPLY_TO:
        end = position + 1 + data[position]
        reply_to = data[position + 1 : end].decode("utf-8", errors)
        position = end
    if flags & EXPIRATION:
        end = position + 1 + data[position]
        expiration = data[position + 1 : end].decode("utf-8", errors)
        position = end
    if flags & MESSAGE_ID:
        end = position + 1 + data[position]
        message_id = data[position + 1 : end].decode("utf-8", errors)
        position = end
    if flags & TIMESTAMP:
        timestamp = TIME.unpack_from(data, position)[0]
        position += 8
    if flags & TYPE:
        end = position + 1 + data[position]
        type_ = _known(data[position + 1 : end], errors)
        position = end
    if flags & USER_ID:
        end = position + 1 + data[position]
        user_id = _known(data[position + 1 : end], errors)
        position = end
    if flags & APP_ID:
        end = position + 1 + data[position]
        app_id = _known(data[position + 1 : end], errors)
        position = end
    if position > len(data):
        raise ValueError("the content header breaks off in the middle of a property")
    return Properties(
        content_type,
        content_encoding,
        table,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        timestamp,
        type_,
        user_id,
        app_id,
    )


def headers(table: bytes) -> dict[str, Any]:
    """The headers of a field table. A string that is not UTF-8 stays bytes, as pamqp has it.

    :raises Exception: of several families; the table holds something that cannot be read.
    """
    found: dict[str, Any] = {}
    position, size = 0, len(table)
    while position < size:
        start = position + 1
        position = start + table[position]
        name = table[start:position].decode()
        if table[position] == LONG_STRING:
            start = position + 5
            position = start + SIZE.unpack_from(table, position + 1)[0]
            if position > size:
                raise ValueError(f"header {name!r} is longer than its table")
            value = table[start:position]
            try:
                found[name] = value.decode()
            except UnicodeDecodeError:
                found[name] = value
        else:
            consumed, found[name] = pamqp_decode.embedded_value(table[position:])
            position += consumed
    return found


def moment(seconds: int) -> datetime:
    """The time a property tells. :raises ValueError, OverflowError, OSError: it lies outside what Python knows."""
    return datetime.fromtimestamp(seconds if seconds <= MOST_SECONDS else seconds / 1000, tz=UTC)


@lru_cache(maxsize=4096)
def _known(raw: bytes, errors: str) -> str:
    """Types, sources and content types are few."""
    return raw.decode("utf-8", errors)
