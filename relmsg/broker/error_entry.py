"""One message of an error queue, with its diagnosis as a person wants to read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiormq.abc import DeliveredMessage

from relmsg.broker import error_headers as names
from relmsg.message import canonical_id

BY_BROKER = "dead-lettered by the broker"
# Properties in the order in which AMQP names them; the headers are told apart.
PROPERTIES = (
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "message_type",
    "user_id",
    "app_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEntry:
    """A message in an error queue and what is known of its failure.

    What the consumer wrote is taken from its headers; for a message that the broker itself dead-lettered, from
    ``x-death``. What is not known is None. ``failed_at`` is ISO 8601 in UTC. ``returned`` counts how often the message
    was given back to this queue, by listings for example, where the broker counts that (quorum queues).
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


def entry_of(delivered: DeliveredMessage, source_queue: str) -> ErrorEntry:
    """The entry a delivery from the error queue of ``source_queue`` carries. Headers can be forged and of any type:
    nothing here fails on them.
    """
    properties = delivered.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    death = _death(headers, source_queue)
    by_consumer = names.REASON in headers
    attempts = headers.get(names.ATTEMPTS)
    returned = headers.get("x-delivery-count")
    return ErrorEntry(
        message_id=properties.message_id or "",
        type=properties.message_type,
        source=properties.app_id,
        reason=_text(headers.get(names.REASON)) or (f"{BY_BROKER}: {death['reason']}" if death else "unknown"),
        exception=_text(headers.get(names.ERROR_TYPE)),
        exception_message=_text(headers.get(names.EXCEPTION_MESSAGE)),
        stacktrace=_text(headers.get(names.EXCEPTION_STACKTRACE)),
        original_exchange=_text(headers.get(names.ORIGINAL_EXCHANGE)) or death.get("exchange"),
        original_routing_key=_text(headers.get(names.ORIGINAL_ROUTING_KEY)) or death.get("routing_key"),
        original_queue=(_text(headers.get(names.ORIGINAL_QUEUE)) if by_consumer else None) or death.get("queue"),
        attempts=attempts if isinstance(attempts, int) else None,
        failed_at=_text(headers.get(names.FAILED_AT)) or death.get("time"),
        consumer=_text(headers.get(names.CONSUMER)),
        returned=returned if isinstance(returned, int) else 0,
        headers=headers,
        properties={
            name.removeprefix("message_") if name == "message_type" else name: value
            for name in PROPERTIES
            if (value := getattr(properties, name)) not in (None, "")
        },
        body=delivered.body,
    )


def _death(headers: Mapping[str, Any], source_queue: str) -> dict[str, str]:
    """What the broker wrote when it dead-lettered the message; empty where it did not.

    The death *in the source queue* counts, not the first one: a message that waited in a delay queue died there first.
    """
    deaths = headers.get("x-death")
    deaths = [each for each in deaths if isinstance(each, Mapping)] if isinstance(deaths, list) else []
    first = {
        name: text
        for name in ("queue", "reason", "exchange")
        if (text := _text(headers.get(f"x-first-death-{name}"))) is not None
    }
    named = first.get("queue")
    here = next((each for each in deaths if each.get("queue") == source_queue), None)
    death = here or next((each for each in deaths if each.get("queue") == named), None)
    if death is None:
        return {"reason": "unknown", **first} if first else {}
    keys, time = death.get("routing-keys"), death.get("time")
    found = {name: _text(death.get(name)) for name in ("queue", "reason", "exchange")}
    found["routing_key"] = _text(keys[0]) if isinstance(keys, list) and keys else None
    found["time"] = _utc(time).isoformat(timespec="milliseconds") if isinstance(time, datetime) else None
    return {"reason": "unknown"} | {name: text for name, text in found.items() if text is not None}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _moment(text: str | None) -> datetime | None:
    try:
        return _utc(datetime.fromisoformat(text)) if text else None
    except ValueError:
        return None
