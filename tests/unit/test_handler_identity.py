"""Under which key a message is remembered."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from relmsg.errors import MissingMessageId
from relmsg.inbox.identity import content_id, identify
from relmsg.message import Message

NAMELESS = Message(id="", type="order.placed", body=b"{}", exchange="shop", routing_key="orders")


def test_consumer_and_source_belong_to_the_key() -> None:
    """The same id from another source, or for another consumer, is another message (C1)."""
    message = Message(id="1", source="orders")
    keys = {
        identify(message, "billing", "reject"),
        identify(message, "mailing", "reject"),
        identify(replace(message, source="returns"), "billing", "reject"),
        identify(replace(message, source=None), "billing", "reject"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("message_id", ["", "a\0b"])
def test_without_a_usable_id_a_message_is_rejected(message_id: str) -> None:
    """By rule reject, a message without an id that PostgreSQL can store has no identity."""
    with pytest.raises(MissingMessageId):
        identify(replace(NAMELESS, id=message_id), "billing", "reject")


def test_a_source_that_cannot_be_stored_is_rejected() -> None:
    """An app_id with a NUL would fail in the database again and again."""
    with pytest.raises(MissingMessageId, match="app_id"):
        identify(Message(id="1", source="a\0b"), "billing", "hash")


def test_by_rule_hash_equal_messages_are_one() -> None:
    """The made id is the same for the same content, and says what it is."""
    first = identify(NAMELESS, "billing", "hash")
    assert first == identify(replace(NAMELESS), "billing", "hash")
    assert first.message_id.startswith("sha256:")


def test_by_rule_hash_every_part_counts() -> None:
    """A difference in any part makes another id, and parts cannot run into each other."""
    others = [
        replace(NAMELESS, type="order.lost"),
        replace(NAMELESS, body=b"{ }"),
        replace(NAMELESS, exchange="shopo", routing_key="rders"),
        replace(NAMELESS, correlation_id=""),
        replace(NAMELESS, timestamp=datetime(2026, 1, 1, tzinfo=UTC)),
        replace(NAMELESS, routing_key="other"),
    ]
    assert len({content_id(message) for message in [NAMELESS, *others]}) == 7
