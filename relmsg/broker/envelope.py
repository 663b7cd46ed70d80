"""The envelope: a message as the broker will see it, checked against every rule before anything depends on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from relmsg.arguments import shown
from relmsg.broker.headers import check_headers
from relmsg.codec import encode_body
from relmsg.errors import BodyTooLarge, ExpirationNotPositive, PropertyRefused
from relmsg.exceptions import text_of
from relmsg.message import Message
from relmsg.security.encryption import ENCRYPTION, Encryption
from relmsg.security.signing import SIGNATURE, Signing
from relmsg.telemetry import trace_headers

MAX_BODY_BYTES = 1024 * 1024  # RabbitMQ 4 takes 16 MiB at most, and large bodies hurt everyone long before that
MAX_SHORT_BYTES = 255  # AMQP 0-9-1, "shortstr"
MAX_KEY_BYTES = 1024  # PostgreSQL indexes values up to 2,704 bytes and would fail the caller's INSERT beyond
MAX_TIMESTAMP = 2**32 - 1  # pamqp reads a larger number of seconds as milliseconds
MAX_EXPIRATION_MS = 10 * 365 * 86_400_000  # RabbitMQ answers a larger one with a closed channel (406)

# What many messages have in common; their ids besides.
COMMON = ("exchange", "routing_key", "type", "source", "content_type", "content_encoding")


class Envelope(NamedTuple):
    """A message as the broker will see it: body in bytes, every property final.

    A named tuple, because the relay makes one for each row: a frozen dataclass takes three times as long to make.
    """

    message_id: str
    exchange: str
    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    type: str | None = None
    source: str | None = None
    ordering_key: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration_ms: int | None = None
    timestamp: datetime | None = None


PROTECTION_BYTES = 320  # what the headers of a signature and of an encrypted body take at most, each with its key's id


def seal(
    message: Message,
    *,
    source: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    signing: Signing | None = None,
    encryption: Encryption | None = None,
) -> Envelope:
    """Turn a message into an envelope that is known to be sendable.

    ``source`` stands in where the message names none. The trace context of the current span joins the headers. The body
    is encrypted first and signed then, so that whoever cannot read it can still tell who sent it.

    :raises InvalidMessage: one of its subclasses, naming the rule the message broke.
    """
    body, content_type = encode_body(message.body)
    headers = _traced(message.headers)
    if signing is not None and headers.__class__ is dict:
        headers = headers.copy()  # the signature is put into it
    envelope = Envelope(  # by place: with names it takes twice as long
        str(message.id) if isinstance(message.id, UUID) else message.id,
        message.exchange,
        message.routing_key,
        body,
        headers,
        message.type,
        source if message.source is None or message.source == "" else message.source,
        message.ordering_key,
        content_type if message.content_type is None else None if message.content_type == "" else message.content_type,
        message.content_encoding,
        message.correlation_id,
        message.reply_to,
        None if message.expiration is None else _milliseconds(message.expiration),
        message.timestamp,
    )
    if encryption is None and signing is None:
        check(envelope, max_body_bytes=max_body_bytes)
        return envelope
    # Before, so that the message's own faults are told and no others; with room for the headers that join them.
    check(envelope, max_body_bytes=sys.maxsize, reserved_bytes=PROTECTION_BYTES)
    envelope = _protected(envelope, signing, encryption)
    _check_size(envelope.body, max_body_bytes)
    return envelope


def _protected(envelope: Envelope, signing: Signing | None, encryption: Encryption | None) -> Envelope:
    if encryption is not None:
        bound = (
            envelope.message_id,
            envelope.type,
            envelope.source,
            envelope.ordering_key,
            envelope.content_type,
            envelope.content_encoding or None,
        )
        body, told = encryption.encrypt(envelope.body, *bound)
        envelope = envelope._replace(body=body, headers={**envelope.headers, ENCRYPTION: told})
    if signing is not None:
        headers = envelope.headers
        if headers.__class__ is not dict:
            envelope = envelope._replace(headers=(headers := dict(headers)))
        headers[SIGNATURE] = signing.header(envelope)
    return envelope


def check(
    envelope: Envelope,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    known_headers: bool = False,
    reserved_bytes: int = 0,
) -> None:
    """Hold an envelope against every rule of AMQP, RabbitMQ and relmsg.

    ``known_headers``: these very headers have been held against their rules before, all but their size.
    ``reserved_bytes`` of headers are yet to come.

    :raises InvalidMessage: one of its subclasses, naming the rule.
    """
    try:
        _check_common(
            envelope.exchange,
            envelope.routing_key,
            envelope.type,
            envelope.source,
            envelope.content_type,
            envelope.content_encoding,
        )
    except TypeError:  # unhashable, so it is no string
        for name in COMMON:
            check_short(name, getattr(envelope, name))
    if not _is_usual(envelope.message_id):
        check_short("message_id", envelope.message_id)
    for name, value in (("correlation_id", envelope.correlation_id), ("reply_to", envelope.reply_to)):
        if value is not None and not _is_usual(value):
            check_short(name, value)
    if not envelope.message_id:
        raise PropertyRefused("message_id is empty: the inbox could not tell a duplicate")
    if envelope.ordering_key is not None:
        _check_text("ordering_key", envelope.ordering_key)
        if not envelope.ordering_key:
            raise PropertyRefused("ordering_key is empty: leave it out, or give a key")
        if (size := len(envelope.ordering_key.encode())) > MAX_KEY_BYTES:
            raise PropertyRefused(f"ordering_key takes {size} bytes, at most {MAX_KEY_BYTES} may")
    if envelope.timestamp is not None:
        _check_timestamp(envelope.timestamp)
    if envelope.expiration_ms is not None and envelope.expiration_ms <= 0:
        raise ExpirationNotPositive(f"expiration is {envelope.expiration_ms} ms; {ExpirationNotPositive.__doc__}")
    if envelope.expiration_ms is not None and envelope.expiration_ms > MAX_EXPIRATION_MS:
        raise PropertyRefused(f"expiration is over {MAX_EXPIRATION_MS} ms (ten years), the most RabbitMQ takes")
    if not known_headers:
        key_bytes = len((envelope.ordering_key or "").encode())
        check_headers(envelope.headers, reserved_bytes=key_bytes + reserved_bytes)
    _check_size(envelope.body, max_body_bytes)


def _check_size(body: bytes, most: int) -> None:
    if len(body) > most:
        raise BodyTooLarge(
            f"the body takes {len(body)} bytes, at most {most} may: store it elsewhere and send a reference, or raise "
            "max_body_bytes"
        )


def outbox_id(message: Message) -> UUID:
    """The message's id as the outbox stores it.

    :raises PropertyRefused: the id is not a UUID, or a UUID in another spelling than the one that would be sent.
    """
    parsed = uuid_of(message.id)
    if isinstance(message.id, str) and str(parsed) != message.id:
        raise PropertyRefused(
            f"message id {message.id!r} would be sent as {str(parsed)!r}, and consumers without an inbox would take "
            f"the two for different messages: give UUID({message.id!r})"
        )
    return parsed


def uuid_of(given: UUID | str) -> UUID:
    """The UUID that a text spells, in any spelling.

    :raises PropertyRefused: it spells none.
    """
    if isinstance(given, UUID):
        return given
    try:
        return UUID(given)
    except (ValueError, AttributeError, TypeError) as error:
        raise PropertyRefused(
            f"message id {shown(given)} is not a UUID: use Message.id_for(…) to make one of it"
        ) from error


def _traced(headers: Any) -> Any:
    """These headers, and the trace context of the current span where there is one."""
    context = trace_headers()
    if headers.__class__ is dict and not context:
        return headers
    return {**context, **headers} if isinstance(headers, Mapping) else headers


def _is_usual(value: object) -> bool:
    """Whether this keeps the rules of ``check_short``, as most do; where not, that one finds out what is wrong."""
    return value.__class__ is str and len(value) <= MAX_SHORT_BYTES and value.isascii() and "\0" not in value


@lru_cache(maxsize=4096)
def _check_common(*values: str | None) -> None:
    for name, value in zip(COMMON, values, strict=True):
        check_short(name, value)


def _milliseconds(expiration: timedelta | float) -> int:
    if isinstance(expiration, bool) or not isinstance(expiration, timedelta | int | float):
        raise PropertyRefused(f"expiration is a timedelta or a number of seconds, not {shown(expiration)}")
    try:
        seconds = expiration.total_seconds() if isinstance(expiration, timedelta) else float(expiration)
        # Half a millisecond is still in the future: rounding it to 0 would mean "drop at once".
        return max(1, round(seconds * 1000)) if seconds > 0 else round(seconds * 1000)
    except (ValueError, OverflowError) as error:  # NaN, infinity
        raise PropertyRefused(f"expiration is a timedelta or a number of seconds, not {shown(expiration)}") from error


def check_short(name: str, value: Any) -> None:
    """Hold one property that AMQP sends as a short string against its rules.

    :raises PropertyRefused: it is not a string, or takes more than 255 bytes.
    """
    if value is None and name not in ("message_id", "exchange", "routing_key"):
        return
    _check_text(name, value)
    size = len(value.encode())
    if size > MAX_SHORT_BYTES:
        raise PropertyRefused(f"{name} takes {size} bytes, AMQP carries at most {MAX_SHORT_BYTES}")


def _check_timestamp(value: Any) -> None:
    if not isinstance(value, datetime):
        raise PropertyRefused(f"timestamp is a datetime, not {type(value).__name__}")
    try:
        seconds = value.timestamp()
    except (ValueError, OverflowError):  # a naive datetime at the very edge, which the local time zone pushes over
        seconds = -1.0
    if not 0 <= seconds <= MAX_TIMESTAMP:
        raise PropertyRefused("timestamp lies before 1970 or after 2106: AMQP clients would read another time")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise PropertyRefused(f"{name} is a string, not {type(value).__name__}")
    if "\0" in value:
        raise PropertyRefused(f"{name} holds a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PropertyRefused(f"{name} is not valid Unicode: {text_of(error)}") from error
