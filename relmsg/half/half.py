"""A half message as a prepare or a check carries it, and the check that asks about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from relmsg.broker.envelope import MAX_BODY_BYTES, Envelope, check
from relmsg.broker.headers import RESERVED
from relmsg.broker.wire import Publication, publication
from relmsg.errors import MalformedHalf
from relmsg.half import protocol
from relmsg.half.protocol import Verb, check_queue, group_name
from relmsg.message import Message

MOST_MILLISECONDS: Final = 365 * 86_400_000
MOST_CHECKS: Final = 1_000_000
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

    def check(self, number: int) -> Publication:
        """The publish that asks the group: the message again, and the number of the check. It does not expire."""
        envelope = self.envelope
        headers = {
            **envelope.headers,
            protocol.VERB: Verb.CHECK.value,
            protocol.GROUP: self.group,
            protocol.EXCHANGE: envelope.exchange,
            protocol.ROUTING_KEY: envelope.routing_key,
            protocol.CHECK: number,
        }
        if envelope.expiration_ms is not None:
            headers[protocol.EXPIRES_IN] = envelope.expiration_ms
        queue = check_queue(self.group)
        return publication(envelope._replace(exchange="", routing_key=queue, headers=headers, expiration_ms=None))


def read_half(message: Message, user_id: str | None, *, max_body_bytes: int = MAX_BODY_BYTES) -> Half:
    """The half message that a prepare or a check carries.

    :raises MalformedHalf: its id is no UUID, or a header is missing or out of range.
    :raises GroupRefused: there can be no group of that name.
    :raises InvalidMessage: it could never be sent.
    """
    headers = message.headers
    assert isinstance(message.body, bytes)
    envelope = Envelope(
        message_id=str(uuid_of("the message id", message.id)),
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
        expiration_ms=whole(headers, protocol.EXPIRES_IN),
        timestamp=message.timestamp,
    )
    check(envelope, max_body_bytes=max_body_bytes)
    return Half(
        envelope,
        group_name(headers.get(protocol.GROUP)),
        user_id,
        _time(headers, protocol.CHECK_AFTER),
        _time(headers, protocol.CHECK_EVERY),
        whole(headers, protocol.MAX_CHECKS, 1, MOST_CHECKS),
    )


def uuid_of(name: str, value: object) -> UUID:
    """The UUID that a property or header holds. :raises MalformedHalf: it holds none."""
    try:
        return value if isinstance(value, UUID) else UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedHalf(f"{name} {value!r} is not a UUID") from error


def whole(headers: Mapping[str, Any], name: str, least: int | None = None, most: int | None = None) -> int | None:
    """The whole number in a header; None without the header.

    :raises MalformedHalf: it holds something else, or one out of range.
    """
    value = headers.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedHalf(f"header {name} is a whole number, not {value!r}")
    if (least is not None and value < least) or (most is not None and value > most):
        raise MalformedHalf(f"header {name} is {least} to {most}, not {value}")
    return value


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    if not isinstance(value, str):
        raise MalformedHalf(f"header {name} is missing, or is no text")
    return value


def _time(headers: Mapping[str, Any], name: str) -> timedelta | None:
    milliseconds = whole(headers, name, 1, MOST_MILLISECONDS)
    return None if milliseconds is None else milliseconds * MILLISECOND
