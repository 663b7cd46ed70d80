"""Which message is this? The key under which the inbox remembers it."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple, TypeAlias

from relmsg.amqp.moved_ids import fitting_id
from relmsg.errors import MissingMessageId
from relmsg.message import Message, canonical_id

MissingId: TypeAlias = Literal["reject", "hash"]


class Identity(NamedTuple):
    """A consumer never lets the same message of the same source take effect twice.

    The source belongs to it because two producers may both count 1, 2, 3; the consumer, because two handlers may both
    want the message (reliability C1).
    """

    consumer: str
    source: str
    message_id: str


_named = tuple.__new__  # a named tuple's own goes through Python, for each message


def identify(message: Message, consumer: str, missing_id: MissingId) -> Identity:
    """The identity of a received message. A UUID has the same identity in each of its spellings.

    An id over 255 bytes, as AMQP 1.0 may carry, counts by its hash. Without an id that PostgreSQL can store,
    ``missing_id`` decides: ``"reject"`` refuses the message; ``"hash"`` makes
    an id from where it was published to, its type, body, timestamp and correlation id. Two messages that agree in all
    of these are then *taken for one*, so use it where publishers send no ids and never mean the same thing twice.

    :raises MissingMessageId: the message has no usable id and must have one.
    """
    source = message.source or ""
    if "\0" in source:
        raise MissingMessageId("the message's app_id holds a NUL character, so its id cannot be remembered")
    message_id = str(message.id)
    if message_id and "\0" not in message_id:
        return _named(Identity, (consumer, source, fitting_id(canonical_id(message_id))))
    if missing_id == "hash":
        return Identity(consumer, source, content_id(message))
    what = "holds a NUL character" if message_id else "is missing"
    raise MissingMessageId(
        f"the message_id {what}, so a duplicate could not be told from a new message: have the publisher set one, or "
        'use Inbox(…, missing_id="hash")'
    )


def content_id(message: Message) -> str:
    """An id for a message that has none: equal for equal messages."""
    digest = hashlib.sha256()
    timestamp = message.timestamp.isoformat() if message.timestamp else ""
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
    parts = (message.exchange, message.routing_key, message.type, timestamp, message.correlation_id)
    for part in (*(text.encode() if text is not None else None for text in parts), body):
        # The length stands before each part, so that no two lists of parts become the same bytes.
        digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
    return f"sha256:{digest.hexdigest()}"
