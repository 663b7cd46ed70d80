"""Message and AMQP: the bytes of a publish, and a message out of a delivery."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from relmsg.amqp.encode_table import encode_table
from relmsg.amqp.moved_ids import MOVED_CORRELATION_ID, MOVED_MESSAGE_ID, id_in
from relmsg.amqp.times import number_of, span_of
from relmsg.broker import encode
from relmsg.broker.encode import KEY_HEADER, content_header, method_frame, table
from relmsg.broker.envelope import Envelope
from relmsg.errors import InvalidMessage
from relmsg.exceptions import text_of
from relmsg.message import Message

PERSISTENT = 2
# RabbitMQ 4.3 sorts a quorum queue by priority and counts "none" as 4; aio-pika always sends 0. One fixed value keeps
# everything we send in one line.
PRIORITY = 0


class Publication(NamedTuple):
    """One ``basic.publish`` to be made, encoded but for the channel it will go through.

    ``header`` is the payload of its content header. It must name ``message_id``: returns are matched by it. A named
    tuple, because the relay makes one for each row: a frozen dataclass takes three times as long to make.
    """

    message_id: str
    exchange: str
    routing_key: str
    header: bytes
    body: bytes


def publication(envelope: Envelope, headers: bytes | None = None, *, user_id: str | None = None) -> Publication:
    """The publish of an envelope: always persistent, one fixed priority, the ordering key as a header.

    ``headers`` is the envelope's field table, where the caller has it already. ``user_id`` is the login of the
    connection it goes by: RabbitMQ closes the channel (406) if it is another.

    :raises InvalidMessage: it cannot be encoded, whatever the encoder's own error was.
    """
    try:
        method_frame(0, envelope.exchange, envelope.routing_key)
        timestamp = envelope.timestamp
        header = content_header(
            len(envelope.body),
            message_id=envelope.message_id,
            delivery_mode=PERSISTENT,
            priority=PRIORITY,
            content_type=envelope.content_type,
            content_encoding=envelope.content_encoding,
            table=table(envelope.headers, envelope.ordering_key) if headers is None else headers,
            correlation_id=envelope.correlation_id,
            reply_to=envelope.reply_to,
            expiration=None if envelope.expiration_ms is None else str(envelope.expiration_ms),
            timestamp=None if timestamp is None else int(timestamp.timestamp()),
            type=envelope.type,
            user_id=user_id,
            app_id=envelope.source,
        )
    except Exception as error:
        raise _not_encodable(envelope.message_id, error) from error
    return Publication(envelope.message_id, envelope.exchange, envelope.routing_key, header, envelope.body)


def copy_of(message_id: str, exchange: str, routing_key: str, properties: Basic.Properties, body: bytes) -> Publication:
    """The publish of a message that was received, with exactly these properties and this id.

    :raises InvalidMessage: it cannot be encoded.
    """
    try:
        method_frame(0, exchange, routing_key)
        timestamp = properties.timestamp
        header = content_header(
            len(body),
            message_id=message_id,
            delivery_mode=properties.delivery_mode,
            priority=properties.priority,
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            table=encode_table(properties.headers) if properties.headers else b"",
            correlation_id=properties.correlation_id,
            reply_to=properties.reply_to,
            expiration=properties.expiration,
            timestamp=number_of(timestamp) if isinstance(timestamp, datetime) else None,
            type=properties.message_type,
            user_id=properties.user_id,
            app_id=properties.app_id,
            cluster_id=properties.cluster_id,
        )
    except Exception as error:
        raise _not_encodable(message_id, error) from error
    return Publication(message_id, exchange, routing_key, header, body)


def frames(publish: Publication, channel: int, frame_max: int) -> bytes:
    """The bytes of a mandatory ``basic.publish`` on a channel."""
    return encode.frames(channel, frame_max, publish.exchange, publish.routing_key, publish.header, publish.body)


def _not_encodable(message_id: str, error: Exception) -> InvalidMessage:
    """pamqp and struct raise four families of errors (reliability P7); all mean "never"."""
    return InvalidMessage(f"message {message_id} cannot be encoded: {text_of(error)}")


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
        id=id_in(headers, MOVED_MESSAGE_ID) or props.message_id or "",
        source=props.app_id,
        content_type=props.content_type,
        content_encoding=props.content_encoding,
        correlation_id=id_in(headers, MOVED_CORRELATION_ID) or props.correlation_id,
        reply_to=props.reply_to,
        expiration=span_of(props.expiration),
        timestamp=props.timestamp if isinstance(props.timestamp, datetime) else None,
        priority=props.priority,
        user_id=props.user_id or None,
        redelivered=bool(delivered.redelivered),
    )
