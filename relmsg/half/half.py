"""A half message: what a prepare says, as it is written into headers and read from them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from relmsg.arguments import shown
from relmsg.broker.envelope import MAX_BODY_BYTES, MAX_EXPIRATION_MS, Envelope, check
from relmsg.broker.headers import RESERVED
from relmsg.broker.wire import Publication, publication
from relmsg.errors import MalformedHalf, UsageError
from relmsg.half import protocol
from relmsg.half.protocol import Verb, check_queue, group_name
from relmsg.message import Message

MOST_SECONDS: Final = 365 * 86_400.0
MOST_CHECKS: Final = 1_000_000
MOST_NUMBER: Final = 2**31 - 1  # PostgreSQL's integer
MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Half:
    """A message, the group that may decide about it, and when that group is asked.

    ``envelope`` is the message as it will be sent; its id, a UUID, is that of the half message. ``user_id`` is the
    login that prepared it, where the broker vouches for one. What is None of the rest is left to the coordinator.
    """

    envelope: Envelope
    group: str
    user_id: str | None = None
    check_after: timedelta | None = None
    check_every: timedelta | None = None
    max_checks: int | None = None

    @property
    def half_id(self) -> UUID:
        """The id of the half message, and of the message."""
        return UUID(self.envelope.message_id)

    def prepare(self) -> Publication:
        """The publish that asks the coordinators to keep it."""
        times = {
            protocol.CHECK_AFTER: _milliseconds(self.check_after),
            protocol.CHECK_EVERY: _milliseconds(self.check_every),
            protocol.MAX_CHECKS: self.max_checks,
        }
        said = {name: value for name, value in times.items() if value is not None}
        return publication(self._to(protocol.COORDINATOR, Verb.PREPARE, said), user_id=self.user_id)

    def check(self, number: int) -> Publication:
        """The publish that asks the group: the message again, and the number of the check."""
        return publication(self._to(check_queue(self.group), Verb.CHECK, {protocol.CHECK: number}))

    def message(self) -> Message:
        """The message as the producer gave it, with its body in bytes."""
        envelope = self.envelope
        return Message(
            type=envelope.type,
            body=envelope.body,
            exchange=envelope.exchange,
            routing_key=envelope.routing_key,
            ordering_key=envelope.ordering_key,
            headers=envelope.headers,
            id=self.half_id,
            source=envelope.source,
            content_type=envelope.content_type,
            content_encoding=envelope.content_encoding,
            correlation_id=envelope.correlation_id,
            reply_to=envelope.reply_to,
            expiration=None if envelope.expiration_ms is None else envelope.expiration_ms * MILLISECOND,
            timestamp=envelope.timestamp,
        )

    def _to(self, queue: str, verb: Verb, said: Mapping[str, Any]) -> Envelope:
        """The message on its way to a queue of the protocol; it must not expire there."""
        envelope = self.envelope
        headers = {
            **envelope.headers,
            protocol.VERB: verb.value,
            protocol.GROUP: self.group,
            protocol.EXCHANGE: envelope.exchange,
            protocol.ROUTING_KEY: envelope.routing_key,
            **said,
        }
        if envelope.expiration_ms is not None:
            headers[protocol.EXPIRES_IN] = envelope.expiration_ms
        return envelope._replace(exchange="", routing_key=queue, headers=headers, expiration_ms=None)


def half_of(
    envelope: Envelope,
    group: str,
    *,
    user_id: str | None = None,
    check_after: timedelta | float | None = None,
    check_every: timedelta | float | None = None,
    max_checks: int | None = None,
) -> Half:
    """A half message out of a sealed message whose id is a UUID; times are a timedelta or seconds, in milliseconds.

    :raises GroupRefused: there can be no group of that name.
    :raises MalformedHalf: the id is no UUID.
    :raises UsageError: a time or a number of checks is out of range.
    """
    return Half(
        envelope._replace(message_id=str(uuid_of("message id", envelope.message_id))),
        group_name(group),
        user_id,
        _time("check_after", check_after),
        _time("check_every", check_every),
        _count("max_checks", max_checks),
    )


def read_half(message: Message, user_id: str | None, *, max_body_bytes: int = MAX_BODY_BYTES) -> Half:
    """The half message that a prepare or a check carries.

    :raises MalformedHalf: its id is no UUID, or a header is missing or out of range.
    :raises GroupRefused: there can be no group of that name.
    :raises InvalidMessage: it could never be sent.
    """
    headers = message.headers
    assert isinstance(message.body, bytes)
    envelope = Envelope(
        message_id=str(uuid_of("message id", message.id)),
        exchange=_text(headers, protocol.EXCHANGE),
        routing_key=_text(headers, protocol.ROUTING_KEY),
        body=message.body,
        # No message has such names of its own: these are the protocol's, or the broker's.
        headers={name: value for name, value in headers.items() if not name.startswith(RESERVED)},
        type=message.type,
        source=message.source,
        ordering_key=message.ordering_key,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration_ms=number(headers, protocol.EXPIRES_IN, 1, MAX_EXPIRATION_MS),
        timestamp=message.timestamp,
    )
    check(envelope, max_body_bytes=max_body_bytes)
    return Half(
        envelope,
        group_name(headers.get(protocol.GROUP)),
        user_id,
        _span(headers, protocol.CHECK_AFTER),
        _span(headers, protocol.CHECK_EVERY),
        number(headers, protocol.MAX_CHECKS, 1, MOST_CHECKS),
    )


def uuid_of(name: str, value: object) -> UUID:
    """The UUID that a property or header holds. :raises MalformedHalf: it holds none."""
    try:
        return value if isinstance(value, UUID) else UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedHalf(f"{name} {shown(value)} is not a UUID") from error


def number(headers: Mapping[str, Any], name: str, least: int = 1, most: int = MOST_NUMBER) -> int | None:
    """The whole number in a header; None without the header.

    :raises MalformedHalf: it holds something else, or a number out of range.
    """
    value = headers.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise MalformedHalf(f"header {name} is a whole number from {least} to {most}, not {shown(value)}")
    return value


def _span(headers: Mapping[str, Any], name: str) -> timedelta | None:
    milliseconds = number(headers, name, 1, round(MOST_SECONDS * 1000))
    return None if milliseconds is None else milliseconds * MILLISECOND


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    if not isinstance(value, str):
        raise MalformedHalf(f"header {name} is missing, or is no text")
    return value


def _time(name: str, value: timedelta | float | None) -> timedelta | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, timedelta | int | float):
        raise UsageError(f"{name} is a timedelta or a number of seconds, not {shown(value)}")
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"{name} is more than 0 seconds and at most a year, not {seconds:g} s")
    return max(1, round(seconds * 1000)) * MILLISECOND


def _count(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CHECKS:
        raise UsageError(f"{name} is a whole number from 1 to {MOST_CHECKS}, not {shown(value)}")
    return value


def _milliseconds(time: timedelta | None) -> int | None:
    return None if time is None else round(time / MILLISECOND)
