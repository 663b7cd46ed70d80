"""Message and AMQP: the bytes of a publish, and a message out of a delivery."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from relmsg.broker.envelope import Envelope
from relmsg.errors import InvalidMessage
from relmsg.message import Message

KEY_HEADER = "relmsg-key"
PERSISTENT = 2
# RabbitMQ 4.3 sorts a quorum queue by priority and counts "none" as 4; aio-pika always sends 0. One fixed value keeps
# everything we send in one line.
PRIORITY = 0

FRAME_END = b"\xce"
FRAME_OVERHEAD = 8
METHOD_FRAME = struct.Struct(">BHIHHH")
MANDATORY = b"\x01"


def properties(envelope: Envelope) -> Basic.Properties:
    """The AMQP properties of an envelope: always persistent, one fixed priority, the ordering key as a header."""
    headers: dict[str, Any] = dict(envelope.headers)
    if envelope.ordering_key is not None:
        headers[KEY_HEADER] = envelope.ordering_key
    return Basic.Properties(
        message_id=envelope.message_id,
        message_type=envelope.type,
        timestamp=envelope.timestamp,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        app_id=envelope.source,
        expiration=None if envelope.expiration_ms is None else str(envelope.expiration_ms),
        headers=headers or None,
        delivery_mode=PERSISTENT,
        priority=PRIORITY,
    )


@dataclass(frozen=True, slots=True)
class Publication:
    """One ``basic.publish`` to be made. Its properties name the ``message_id``: returns are matched by it."""

    message_id: str
    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes


def publication(envelope: Envelope) -> Publication:
    """The publish of an envelope."""
    return Publication(
        envelope.message_id, envelope.exchange, envelope.routing_key, properties(envelope), envelope.body
    )


def frames(publish: Publication, channel: int, frame_max: int) -> bytes:
    """The bytes of a mandatory ``basic.publish`` on a channel.

    The method frame is packed here: pamqp refuses exchange names that RabbitMQ takes (over 127 characters, or with
    characters outside its own pattern).

    :raises InvalidMessage: it cannot be encoded, whatever the encoder's own error was.
    """
    try:
        target = _short(publish.exchange) + _short(publish.routing_key)
        header = ContentHeader(properties=publish.properties, body_size=len(publish.body))
        parts = [
            METHOD_FRAME.pack(1, channel, 6 + len(target) + 1, 60, 40, 0),
            target,
            MANDATORY,
            FRAME_END,
            frame.marshal(header, channel),
        ]
        room = frame_max - FRAME_OVERHEAD
        parts.extend(
            frame.marshal(ContentBody(publish.body[start : start + room]), channel)
            for start in range(0, len(publish.body), room)
        )
    except Exception as error:  # pamqp raises four families of errors (reliability P7); all mean "never"
        raise InvalidMessage(f"message {publish.message_id} cannot be encoded: {error}") from error
    return b"".join(parts)


def received(delivered: DeliveredMessage) -> Message:
    """The message a delivery carries; its body is bytes.

    Nothing is guessed: a message without an id has an empty one. Headers keep what the broker put into them.
    """
    props = delivered.header.properties
    headers: Mapping[str, Any] = props.headers or {}
    key = headers.get(KEY_HEADER)
    return Message(
        type=props.message_type,
        body=delivered.body,
        exchange=delivered.exchange or "",
        routing_key=delivered.routing_key or "",
        ordering_key=key if isinstance(key, str) and key else None,
        headers=headers,
        id=props.message_id or "",
        source=props.app_id,
        content_type=props.content_type,
        content_encoding=props.content_encoding,
        correlation_id=props.correlation_id,
        reply_to=props.reply_to,
        timestamp=props.timestamp if isinstance(props.timestamp, datetime) else None,
    )


def _short(value: str) -> bytes:
    raw = value.encode()
    return bytes([len(raw)]) + raw
