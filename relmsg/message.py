"""The message: what is said, to whom, under which identity. Frozen."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID, uuid5

from relmsg.arguments import refused

HeaderValue: TypeAlias = "str | int | bool | list[HeaderValue] | dict[str, HeaderValue] | None"
Headers: TypeAlias = Mapping[str, HeaderValue]

# Ids made from business keys live in a namespace of their own, so that they cannot meet anyone else's UUIDv5.
ID_NAMESPACE = UUID("6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11")

HYPHENED = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
USUAL_CHARACTERS = 36
USUAL_SPELLING = re.compile(HYPHENED)
SPELLING = re.compile(
    rf"(?:urn:uuid:)?({HYPHENED}|[0-9a-f]{{32}})|\{{({HYPHENED}|[0-9a-f]{{32}})\}}", re.IGNORECASE | re.ASCII
)


def canonical_id(given: str) -> str:
    """The id in the usual spelling of a UUID, lower case with hyphens, if it spells a UUID; any other text as it is.

    Other spellings are upper case, no hyphens, braces, and ``urn:uuid:``. Ids whose canonical texts are equal name the
    same message.
    """
    if len(given) == USUAL_CHARACTERS and given.islower():  # as usual, or no UUID: told quicker than by an expression
        return given
    if USUAL_SPELLING.fullmatch(given) or not (spelt := SPELLING.fullmatch(given)):
        return given
    return str(UUID(spelt[1] or spelt[2]))


def uuid7() -> UUID:
    """A UUID that sorts by the time it was made (RFC 9562, version 7).

    Its order is that of this host's clock: good for index locality, never to be used for message order.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    high = (milliseconds & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (random >> 68 & 0x0FFF)
    low = 0x8000_0000_0000_0000 | random & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(int=high << 64 | low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is said, to whom, under which identity.

    ``id`` is the same on every resend and in the error queue; the inbox knows a duplicate by it. Without one a
    UUIDv7 is made. Give ``Message.id_for(business_key)`` where the *caller* may retry: then the retried request
    publishes the same id, and the effect still happens once.

    ``ordering_key``: messages with the same key take effect in the order they were published. ``expiration`` is a
    time span (``timedelta`` or seconds) counted from the moment of publishing. ``body`` may be bytes, str, dict, list,
    a dataclass, a ``msgspec.Struct`` or a pydantic model when publishing; a received message always carries bytes.
    ``content_type`` follows from the body unless given; an empty one sends none.

    Of a received message also: ``priority`` as its publisher set it; ``user_id``, the login it was published by, where
    its publisher said so (RabbitMQ lets nobody name another); ``redelivered``, whether the broker had given it to some
    consumer before (False does not mean that it is new); ``expiration``, the time to live it was published with, as a
    ``timedelta``. ``publish`` sends neither a priority of the caller's choice nor a user id nor ``redelivered``.

    Nothing is checked here: ``publish`` checks the whole message, where an error can still undo the caller's work.
    """

    type: str | None = None
    body: object = b""
    exchange: str = ""
    routing_key: str = ""
    ordering_key: str | None = None
    headers: Headers = field(default_factory=dict)
    id: UUID | str = field(default_factory=uuid7)
    source: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: timedelta | float | None = None
    timestamp: datetime | None = None
    priority: int | None = None
    user_id: str | None = None
    redelivered: bool = False

    @staticmethod
    def id_for(business_key: str) -> UUID:
        """The id (UUIDv5) that belongs to a business key, such as ``"order-7-placed"``: equal keys, equal ids.

        :raises UsageError: the key is no text.
        """
        if not isinstance(business_key, str):
            raise refused("Message.id_for(business_key)", business_key, "is a string")
        try:
            return uuid5(ID_NAMESPACE, business_key)
        except UnicodeEncodeError:
            raise refused("Message.id_for(business_key)", business_key, "is valid Unicode") from None
