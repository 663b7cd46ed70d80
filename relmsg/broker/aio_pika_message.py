"""From an aio-pika message to ours, without losing a property in silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import aio_pika

from relmsg.errors import UnsupportedProperty
from relmsg.message import Message, uuid7

AioPikaMessage: TypeAlias = aio_pika.abc.AbstractMessage
AioPikaExchange: TypeAlias = aio_pika.abc.AbstractExchange


def convert(message: AioPikaMessage, exchange: str, routing_key: str) -> Message:
    """The same message, as relmsg sends it.

    aio-pika makes every message transient unless told otherwise; relmsg sends all of them persistent. A message without
    an id gets one *now*, where aio-pika would make a new one at every try.

    :raises UnsupportedProperty: a property that the outbox cannot keep.
    """
    if message.priority:
        raise UnsupportedProperty(
            f"priority={message.priority} cannot be kept: relmsg sends one fixed priority, so that no message overtakes"
        )
    if message.user_id:
        raise UnsupportedProperty(
            "user_id cannot be kept: the relay logs in under its own name, and RabbitMQ checks it"
        )
    return Message(
        type=message.type,
        body=message.body,
        exchange=exchange,
        routing_key=routing_key,
        headers=dict(message.headers or {}),  # type: ignore[arg-type]  # every value is checked by publish
        id=message.message_id or uuid7(),
        source=message.app_id,
        content_type=message.content_type or "",
        content_encoding=message.content_encoding,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=_span(message.expiration),
        timestamp=_moment(message.timestamp),
    )


def _span(expiration: Any) -> timedelta | float | None:
    if isinstance(expiration, datetime):
        # aio-pika would turn a moment that has passed into a negative number, on which RabbitMQ closes the channel.
        # A naive moment is local time, as aio-pika has it.
        return expiration.astimezone(UTC) - datetime.now(UTC)
    return expiration  # type: ignore[no-any-return]


def _moment(timestamp: Any) -> datetime | None:
    if timestamp is None or isinstance(timestamp, datetime):
        return timestamp if timestamp is None or timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
    return datetime.fromtimestamp(float(timestamp), UTC)
