"""Reads the properties in a content header.

pamqp makes an object, an attribute loop and a dispatch for each property, and one value that it cannot read costs the
whole connection (reliability B1). Here a property that cannot be read is a ``fault`` of its message alone. A property
test holds that both read the same from any header that pamqp can write.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from relmsg.amqp.remarks import Remarks
from relmsg.broker.encode import (
    APP_ID,
    CLUSTER_ID,
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
MAX_SHORT_BYTES = 255
NO_TABLE = b""


class Properties(NamedTuple):
    """What a content header says; ``table`` is its field table, still encoded and without its length."""

    content_type: str | None
    content_encoding: str | None
    table: bytes
    priority: int | None
    correlation_id: str | None
    reply_to: str | None
    expiration: str | None
    message_id: str | None
    timestamp: int | None
    type: str | None
    user_id: str | None
    app_id: str | None
    cluster_id: str | None


NOTHING = Properties(None, None, NO_TABLE, None, None, None, None, None, None, None, None, None, None)
Values: TypeAlias = tuple[
    str | None,
    str | None,
    bytes,
    int | None,
    str | None,
    str | None,
    str | None,
    str | None,
    int | None,
    str | None,
    str | None,
    str | None,
    str | None,
]
"""Those of Properties without their names: a named tuple costs each message a call more."""


def properties(header: bytes, *, errors: str = "strict") -> Properties:
    """The properties in the payload of a content header frame; raises what ``values`` raises."""
    return Properties(*values(header, errors))


def values(header: bytes, errors: str = "strict") -> Values:
    """The properties in the payload of a content header frame, in the order of ``Properties``.

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
    table, priority, timestamp, cluster_id = NO_TABLE, None, None, None
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
        priority = data[position]
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
    if flags & CLUSTER_ID:
        end = position + 1 + data[position]
        cluster_id = _known(data[position + 1 : end], errors)
        position = end
    if position > len(data):
        raise ValueError("the content header breaks off in the middle of a property")
    return (
        content_type,
        content_encoding,
        table,
        priority,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        timestamp,
        type_,
        user_id,
        app_id,
        cluster_id,
    )


def readable(header: bytes, fault: Exception, remarks: Remarks) -> Properties:
    """What can be read of a content header that ``properties`` refuses with ``fault``; the remarks name the rest.

    Bytes that are not UTF-8 become replacement characters, which take three bytes each: what would be longer than AMQP
    carries is cut, so that the message can be sent on.
    """
    try:
        read = properties(header, errors="replace")
    except Exception as error:  # noqa: BLE001 - struct, index and value errors: not even its structure can be read
        remarks.left_out("properties", error)
        return NOTHING
    shown: dict[str, Any] = {}
    came = properties(header, errors="surrogateescape")._asdict()
    for name, value in read._asdict().items():
        if isinstance(value, str) and value != came[name]:
            shown[name] = value.encode()[:MAX_SHORT_BYTES].decode(errors="ignore")
            remarks.repaired(name, fault, came[name].encode(errors="surrogateescape"))
    return read._replace(**shown)


@lru_cache(maxsize=4096)
def _known(raw: bytes, errors: str) -> str:
    """Types, sources and content types are few."""
    return raw.decode("utf-8", errors)
