"""One message of an error queue, with its diagnosis as a person wants to read it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from relmsg.broker import error_headers as names
from relmsg.broker.unacked import Unacked
from relmsg.message import canonical_id

BY_BROKER = "dead-lettered by the broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEntry:
    """A message in an error queue and what is known of its failure.

    What the consumer wrote is taken from its headers; for a message that the broker itself dead-lettered, from
    ``x-death``. What is not known is None. ``failed_at`` is ISO 8601 in UTC. ``returned`` counts how often the message
    was given back to this queue, by listings for example, where the broker counts that (quorum queues). ``altered``
    names properties and headers that cannot be read, and are left out or repaired here.
    """

    message_id: str
    type: str | None
    source: str | None
    reason: str
    exception: str | None
    exception_message: str | None
    stacktrace: str | None
    original_exchange: str | None
    original_routing_key: str | None
    original_queue: str | None
    attempts: int | None
    failed_at: str | None
    consumer: str | None
    returned: int
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes
    altered: Sequence[str] = ()

    @property
    def published_at(self) -> datetime | None:
        """When it was published as far as known: its timestamp, or else when it failed."""
        timestamp = self.properties.get("timestamp")
        return _utc(timestamp) if isinstance(timestamp, datetime) else _moment(self.failed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFilter:
    """Which entries are meant: those to which everything given applies. ``exception`` is a class name, with or without
    what stands before its last dot. An id that is a UUID is meant in any spelling. An entry without a time is never
    meant by ``since`` or ``until``.
    """

    message_id: str | None = None
    exception: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def matches(self, entry: ErrorEntry) -> bool:
        """Whether the entry is meant."""
        if self.message_id is not None and canonical_id(entry.message_id) != canonical_id(self.message_id):
            return False
        if self.type is not None and entry.type != self.type:
            return False
        if self.exception is not None:
            name = entry.exception or ""
            if self.exception not in (name, re.split(r"[.:]", name)[-1]):
                return False
        if self.since is None and self.until is None:
            return True
        failed_at = _moment(entry.failed_at)
        if failed_at is None:
            return False
        return (self.since is None or failed_at >= self.since) and (self.until is None or failed_at <= self.until)


def entry_of(delivered: Unacked, source_queue: str) -> ErrorEntry:
    """The entry a message in the error queue of ``source_queue`` carries. Headers can be forged and of any type:
    nothing here fails on them.
    """
    came = delivered.message
    headers = came.headers
    death = _death(headers, source_queue)
    by_consumer = names.REASON in headers
    return ErrorEntry(
        message_id=str(came.id),
        type=came.type,
        source=came.source,
        reason=text_of(headers.get(names.REASON)) or (f"{BY_BROKER}: {death['reason']}" if death else "unknown"),
        exception=text_of(headers.get(names.ERROR_TYPE)),
        exception_message=text_of(headers.get(names.EXCEPTION_MESSAGE)),
        stacktrace=text_of(headers.get(names.EXCEPTION_STACKTRACE)),
        original_exchange=text_of(headers.get(names.ORIGINAL_EXCHANGE)) or death.get("exchange"),
        original_routing_key=text_of(headers.get(names.ORIGINAL_ROUTING_KEY)) or death.get("routing_key"),
        original_queue=(text_of(headers.get(names.ORIGINAL_QUEUE)) if by_consumer else None) or death.get("queue"),
        attempts=_number(headers.get(names.ATTEMPTS)),
        failed_at=text_of(headers.get(names.FAILED_AT)) or death.get("time"),
        consumer=text_of(headers.get(names.CONSUMER)),
        returned=_number(headers.get("x-delivery-count")) or 0,
        headers=headers,
        properties={name: value for name, value in _properties(delivered) if value not in (None, "")},
        body=delivered.body,
        altered=tuple(delivered.remarks.altered) if delivered.remarks else (),
    )


def _properties(delivered: Unacked) -> Iterator[tuple[str, Any]]:
    """Names and values in the order of AMQP; the headers are told apart."""
    came = delivered.message
    yield "content_type", came.content_type
    yield "content_encoding", came.content_encoding
    yield "priority", came.priority
    yield "correlation_id", came.correlation_id
    yield "reply_to", came.reply_to
    yield "expiration", delivered.expiration
    yield "message_id", str(came.id)
    yield "timestamp", came.timestamp
    yield "type", came.type
    yield "user_id", came.user_id
    yield "app_id", came.source


def _death(headers: Mapping[str, Any], source_queue: str) -> dict[str, str]:
    """What the broker wrote when it dead-lettered the message; empty where it did not.

    The death *in the source queue* counts, not the first one: a message that waited in a delay queue died there first.
    """
    deaths = headers.get("x-death")
    deaths = [each for each in deaths if isinstance(each, Mapping)] if isinstance(deaths, list) else []
    first = {
        name: text
        for name in ("queue", "reason", "exchange")
        if (text := text_of(headers.get(f"x-first-death-{name}"))) is not None
    }
    named = first.get("queue")
    here = next((each for each in deaths if each.get("queue") == source_queue), None)
    death = here or next((each for each in deaths if each.get("queue") == named), None)
    if death is None:
        return {"reason": "unknown", **first} if first else {}
    keys, time = death.get("routing-keys"), death.get("time")
    found = {name: text_of(death.get(name)) for name in ("queue", "reason", "exchange")}
    found["routing_key"] = text_of(keys[0]) if isinstance(keys, list) and keys else None
    found["time"] = _utc(time).isoformat(timespec="milliseconds") if isinstance(time, datetime) else None
    return {"reason": "unknown"} | {name: text for name, text in found.items() if text is not None}


def text_of(value: Any) -> str | None:
    """A header as text, of whichever type it is."""
    if value is None or isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _moment(text: str | None) -> datetime | None:
    try:
        return _utc(datetime.fromisoformat(text)) if text else None
    except (ValueError, OverflowError):  # the last: a time at the edge of what Python knows, in another zone
        return None
