"""Smaller error copies, for a broker that refuses the whole one."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pamqp.commands import Basic

from relmsg.amqp.moved_ids import fitting_id
from relmsg.broker import error_headers as names
from relmsg.broker.delivery import Delivery
from relmsg.broker.diagnosis import cut_text
from relmsg.broker.wire import PERSISTENT, PRIORITY, Publication, copy_of

SMALL_HEADERS = 2048
BODY_BYTES = 64 * 1024
SHORT_BYTES = 255  # AMQP 0-9-1, "shortstr"

# The message is at fault, or its copy: too large (406), a frame too large or malformed (501, 502, 505), or the broker
# fails over it (541). A missing exchange or permission is not among them: that concerns every copy.
REFUSALS = frozenset({406, 501, 502, 505, 541})

Headers = Callable[[int], dict[str, Any]]
"""The headers of an error copy within so many bytes."""


def smaller_copies(
    delivery: Delivery, exchange: str, routing_key: str, message_id: str, headers: Headers, minimal: Mapping[str, Any]
) -> Iterator[Callable[[], Publication]]:
    """Functions that make copies of a message that was refused, each smaller than the one before; any but the last may
    raise.

    First the diagnosis is cut, and with it the largest of the message's own headers; then the body, down to 64 KiB;
    then all of it, and the properties. ``relmsg-body-size`` and ``relmsg-body-sha256`` tell of the body as it came. The
    last one takes nothing from the message but that: its headers are ``minimal``, its id a new one.
    """
    body = _bytes(delivery)
    yield lambda: _copy(delivery, exchange, routing_key, message_id, headers(SMALL_HEADERS), body)
    if len(body) > BODY_BYTES:
        cut = body[:BODY_BYTES]
        yield lambda: _copy(delivery, exchange, routing_key, message_id, _told(headers(SMALL_HEADERS), body), cut)

    def bare() -> Publication:
        known = {name: value for name, value in headers(SMALL_HEADERS).items() if name in names.OURS}
        return _bare(message_id, exchange, routing_key, _told(known, body))

    yield bare
    yield lambda: _bare(str(uuid.uuid4()), exchange, routing_key, _told(minimal, body))


def _bare(message_id: str, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> Publication:
    properties = Basic.Properties(headers=dict(headers), delivery_mode=PERSISTENT, priority=PRIORITY)
    return copy_of(fitting_id(message_id), exchange, routing_key, properties, b"")


def _copy(
    delivery: Delivery, exchange: str, routing_key: str, message_id: str, headers: Mapping[str, Any], body: bytes
) -> Publication:
    came = delivery.message
    properties = Basic.Properties(
        content_type=_short(came.content_type),
        content_encoding=_short(came.content_encoding),
        correlation_id=_short(came.correlation_id),
        reply_to=_short(came.reply_to),
        timestamp=came.timestamp,
        message_type=_short(came.type),
        app_id=_short(came.source),
        headers=dict(headers),
        delivery_mode=PERSISTENT,
        priority=PRIORITY,
    )
    return copy_of(fitting_id(message_id), exchange, routing_key, properties, body)


def _told(headers: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """The headers, and what the body was before it was cut."""
    cut = ", ".join(filter(None, ("body (cut)", headers.get(names.SANITISED))))
    return {
        **headers,
        names.SANITISED: cut_text(cut, 256),
        names.BODY_SIZE: len(body),
        names.BODY_SHA256: hashlib.sha256(body).hexdigest(),
    }


def _short(text: str | None) -> str | None:
    return None if text is None else cut_text(text, SHORT_BYTES)


def _bytes(delivery: Delivery) -> bytes:
    body = delivery.message.body
    assert isinstance(body, bytes)
    return body
