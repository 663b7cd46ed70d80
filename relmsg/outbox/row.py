"""A row of the outbox on its way to the broker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from relmsg.broker.encode import entries, joined
from relmsg.broker.envelope import Envelope, check
from relmsg.broker.headers import MAX_BYTES, check_headers
from relmsg.broker.wire import Publication, publication
from relmsg.errors import HeadersTooLarge, InvalidMessage


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
    """Headers as PostgreSQL shows them, checked and encoded; most rows share theirs with many others."""
    headers = json.loads(text)
    check_headers(headers)
    return _Headers(headers, *entries(headers))
