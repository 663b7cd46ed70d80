"""A row of the outbox on its way to the broker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec

from relmsg.broker.encode import Shape, entries, joined, shape
from relmsg.broker.envelope import MAX_KEY_BYTES, MAX_TIMESTAMP, Envelope, check, check_short
from relmsg.broker.headers import MAX_BYTES, check_headers
from relmsg.broker.wire import PERSISTENT, PRIORITY, Publication, publication
from relmsg.errors import HeaderRefused, HeadersTooLarge, InvalidMessage
from relmsg.exceptions import text_of

MOST_UTF8_BYTES = 4


class Destination(NamedTuple):
    """Where a row is to go; without a routing key, a whole exchange."""

    exchange: str
    routing_key: str | None

    def __str__(self) -> str:
        return f"exchange {self.exchange!r}" + (
            "" if self.routing_key is None else f", routing key {self.routing_key!r}"
        )


@dataclass(slots=True, eq=False)
class Row:
    """A committed message, as the relay holds it in memory: what to publish, and how often nobody answered."""

    id: int
    slot: int
    ordering_key: str | None
    destination: Destination
    publish: Publication
    unanswered: int = field(default=0)


class Record(Protocol):
    """A record as asyncpg returns it."""

    def __getitem__(self, name: str) -> Any:
        """The value of a column."""
        ...


def row_of(record: Record, *, max_body_bytes: int) -> Row:
    """The row of a record, held against every rule: an INSERT in plain SQL was checked by nobody.

    :raises InvalidMessage: this row can never be sent.
    """
    return _usual_row(record, max_body_bytes) or _any_row(record, max_body_bytes)


def _usual_row(record: Record, max_body_bytes: int) -> Row | None:
    """The row of a record without the rarer properties: everything but its id, time and body is checked and encoded
    once for many. None where something is unusual, or may be wrong."""
    if record["expires_ms"] is not None or record["correlation_id"] is not None or record["reply_to"] is not None:
        return None
    body, key = record["body"], record["ordering_key"]
    seconds = int(record["sent_time"].timestamp())
    if len(body) > max_body_bytes or not 0 <= seconds <= MAX_TIMESTAMP:
        return None
    if key is not None and not 0 < len(key) <= MAX_KEY_BYTES // MOST_UTF8_BYTES:
        return None
    headers = _headers(record["headers"])
    table = joined(headers.before, headers.after, key)
    if len(table) > MAX_BYTES:
        return None
    shape = _shape(record["type"], record["source"], record["content_type"], record["content_encoding"])
    destination = _destination(record["exchange"], record["routing_key"])
    message_id = str(record["message_id"])
    header = shape.header(len(body), table, message_id, seconds)
    publish = Publication(message_id, destination.exchange, record["routing_key"], header, body)
    return Row(record["id"], record["slot"], key, destination, publish)


def _any_row(record: Record, max_body_bytes: int) -> Row:
    if record["expires_ms"] is not None and record["expires_ms"] <= 0:
        raise InvalidMessage("it expired before it could be sent")
    known = _headers(record["headers"])
    key = record["ordering_key"]
    table = joined(known.before, known.after, key)
    if len(table) > MAX_BYTES:
        raise HeadersTooLarge(f"the headers take {len(table)} bytes, at most {MAX_BYTES} may")
    envelope = Envelope(
        message_id=str(record["message_id"]),
        exchange=record["exchange"],
        routing_key=record["routing_key"],
        body=record["body"],
        type=record["type"],
        source=record["source"],
        ordering_key=key,
        headers=known.headers,
        content_type=record["content_type"],
        content_encoding=record["content_encoding"],
        correlation_id=record["correlation_id"],
        reply_to=record["reply_to"],
        expiration_ms=record["expires_ms"],
        timestamp=record["sent_time"],
    )
    check(envelope, max_body_bytes=max_body_bytes, known_headers=True)
    return Row(
        id=record["id"],
        slot=record["slot"],
        ordering_key=key,
        destination=Destination(envelope.exchange, envelope.routing_key),
        publish=publication(envelope, table),
    )


class _Headers(NamedTuple):
    headers: Mapping[str, Any]
    before: bytes
    after: bytes


@lru_cache(maxsize=2048)
def _headers(text: str) -> _Headers:
    """Headers as PostgreSQL shows them, checked and encoded; many rows share theirs with others."""
    try:
        headers = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # PostgreSQL keeps what Python cannot read: more digits, more depth. (An older msgspec has an error of its own.)
        raise HeaderRefused(f"headers: {text_of(error)}") from error
    check_headers(headers)
    return _Headers(headers, *entries(headers))


@lru_cache(maxsize=4096)
def _shape(type_: str | None, source: str | None, content_type: str | None, content_encoding: str | None) -> Shape:
    named = {"type": type_, "source": source, "content_type": content_type, "content_encoding": content_encoding}
    for name, value in named.items():
        check_short(name, value)
    return shape(
        delivery_mode=PERSISTENT,
        priority=PRIORITY,
        content_type=content_type,
        content_encoding=content_encoding,
        type=type_,
        app_id=source,
    )


@lru_cache(maxsize=4096)
def _destination(exchange: str, routing_key: str) -> Destination:
    check_short("exchange", exchange)
    check_short("routing_key", routing_key)
    return Destination(exchange, routing_key)
