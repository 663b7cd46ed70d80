"""A record of the outbox becomes the same publish by the short way and by the long one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relmsg.errors import InvalidMessage
from relmsg.outbox.row import _any_row, _usual_row, row_of

# What PostgreSQL can hold in a text: no NUL, no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
HEADERS = st.dictionaries(TEXT, TEXT, max_size=3) | JSON
RECORDS = st.fixed_dictionaries(
    {
        "id": st.just(1),
        "slot": st.just(2),
        "message_id": st.uuids(),
        "type": st.none() | TEXT,
        "source": st.none() | TEXT,
        "exchange": TEXT,
        "routing_key": TEXT,
        "ordering_key": st.none() | TEXT,
        "headers": HEADERS.map(json.dumps),
        "content_type": st.none() | TEXT,
        "content_encoding": st.none() | TEXT,
        "correlation_id": st.none() | TEXT,
        "reply_to": st.none() | TEXT,
        "body": st.binary(max_size=60),
        "sent_time": st.datetimes(timezones=st.just(UTC)),
        "expires_ms": st.none() | st.integers(-5, 10**13),
    }
)
BARE = {
    "id": 1,
    "slot": 2,
    "message_id": UUID(int=7),
    "exchange": "e",
    "routing_key": "r",
    "headers": "{}",
    "body": b"",
    "sent_time": datetime(2026, 1, 1, tzinfo=UTC),
    **dict.fromkeys(
        (
            "type",
            "source",
            "ordering_key",
            "content_type",
            "content_encoding",
            "correlation_id",
            "reply_to",
            "expires_ms",
        )
    ),
}


def publish_of(way: Any, record: dict[str, Any]) -> Any:
    """The publish, with the key and the destination it is kept in order by; or the class of what was wrong."""
    try:
        row = way(record, 50)
    except InvalidMessage as error:
        return type(error)
    return row and (row.publish, row.ordering_key, row.destination, row.id, row.slot)


@given(RECORDS)
def test_both_ways_are_one(record):
    """Whatever stands in the row: the short way either passes, or comes to just what the long way comes to."""
    usual = publish_of(_usual_row, record)
    if usual is not None:
        assert usual == publish_of(_any_row, record)


def test_the_usual_row_is_usual():
    """A plain row, keyed or not, with a trace in its headers, goes the short way."""
    headers = json.dumps({"traceparent": "00-1-2-01", "tenant": "ä"})
    for key in (None, "order-7"):
        assert _usual_row(BARE | {"headers": headers, "ordering_key": key, "type": "t"}, 50) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"body": b"x" * 51},
        {"ordering_key": ""},
        {"ordering_key": "k" * 1025},
        {"headers": '{"x-mine": "1"}'},
        {"headers": '{"a": 1.5}'},
        {"headers": "[]"},
        {"headers": json.dumps({"a": "x" * 17_000})},
        {"headers": '{"deep": ' + "[" * 5000 + "]" * 5000 + "}"},
        {"headers": '{"long": ' + "1" * 5000 + "}"},
        {"type": "t" * 256},
        {"exchange": "ä" * 128},
        {"sent_time": datetime(1969, 1, 1, tzinfo=UTC)},
        {"expires_ms": 0},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_a_row_that_can_never_be_sent_is_refused(wrong):
    """Each broken rule is found, whichever way the row would have gone."""
    with pytest.raises(InvalidMessage):
        row_of(BARE | wrong, max_body_bytes=50)
