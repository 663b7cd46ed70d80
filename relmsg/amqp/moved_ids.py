"""Finds the ids of AMQP 1.0 messages, which RabbitMQ moves into headers where no property of 0-9-1 holds them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

MOVED_MESSAGE_ID = "x-message-id"
MOVED_CORRELATION_ID = "x-correlation-id"
MAX_SHORT_BYTES = 255
MAX_UTF8_BYTES = 4  # of one character
MOVED_IDS = frozenset({MOVED_MESSAGE_ID, MOVED_CORRELATION_ID})


def id_in(headers: Mapping[str, Any], name: str) -> str | None:
    """The id in this header as text; None where there is none.

    A string stays as it is; a number becomes its digits; bytes become ``base64:`` and their Base64.
    """
    value = headers.get(name)
    if isinstance(value, str):
        return value or None
    if isinstance(value, bytes | bytearray):
        return "base64:" + base64.b64encode(value).decode()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def fitting_id(message_id: str) -> str:
    """This id, or the hash of it where a property of 0-9-1 cannot hold it: equal ids have equal hashes."""
    if len(message_id) * MAX_UTF8_BYTES <= MAX_SHORT_BYTES:
        return message_id
    raw = message_id.encode(errors="replace")
    return message_id if len(raw) <= MAX_SHORT_BYTES else f"sha256:{hashlib.sha256(raw).hexdigest()}"
