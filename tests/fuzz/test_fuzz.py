"""Broken and hostile bytes, many of them: no exit, no stall, and every neighbour is handled.

`make test` runs this in half a minute; `make fuzz` twenty times as much, from its own seed (FUZZ_TIMES, FUZZ_SEED).
"""

from __future__ import annotations

import json
import os
from datetime import UTC
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from relmsg.broker.receiving import message_of
from relmsg.errors import InvalidMessage
from relmsg.outbox.row import row_of
from tests.fuzz.chain import go
from tests.fuzz.mutator import Mutator, Sample, crafted

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "11"))
DECODED = 100_000
WHOLE = 200 if TIMES == 1 else 20  # one in so many goes all the way


def test_the_messages_that_have_hurt_go_all_the_way() -> None:
    """Strings that grow when they are made readable, 3000 levels of headers, times beyond all years."""
    for sample in crafted():
        go(sample)


def test_a_hundred_thousand_changed_messages_are_decoded() -> None:
    """Each becomes a message with what can be read of it; some are refused or handed on, copied, shown and read by
    a coordinator as well."""
    mutator = Mutator(SEED)
    for number in range(TIMES * DECODED):
        sample = mutator.next()
        message, _, _ = message_of(sample.header, "e", "r", sample.body)
        assert message.body is sample.body
        if number % WHOLE == 0:
            try:
                go(sample)
            except Exception as error:
                raise AssertionError(f"seed {SEED}, number {number}: {sample}") from error


@settings(max_examples=40 * TIMES, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=50))
def test_any_bytes_are_a_message(header: bytes, body: bytes) -> None:
    """A content header of any bytes goes all the way."""
    go(Sample(b"\0\x3c\0\0" + len(body).to_bytes(8, "big") + header, body))


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
JSON_TEXT = (
    TEXT
    | st.integers(0, 3000).map(lambda depth: '{"a":' * depth + "1" + "}" * depth)
    | st.integers(1, 400).map(lambda digits: f'{{"n": {"9" * digits}}}')
    | st.dictionaries(TEXT, st.integers() | TEXT | st.none(), max_size=3).map(json.dumps)
)
MOMENTS = st.datetimes(timezones=st.just(UTC))
RECORDS = st.fixed_dictionaries(
    {
        "id": st.just(1),
        "slot": st.integers(0, 63),
        "message_id": st.uuids(),
        "exchange": TEXT,
        "routing_key": TEXT,
        "type": st.none() | TEXT,
        "source": st.none() | TEXT,
        "ordering_key": st.none() | TEXT,
        "headers": JSON_TEXT,
        "content_type": st.none() | TEXT,
        "content_encoding": st.none() | TEXT,
        "correlation_id": st.none() | TEXT,
        "reply_to": st.none() | TEXT,
        "expires_ms": st.none() | st.integers(-(2**63), 2**63 - 1),
        "sent_time": MOMENTS,
        "body": st.binary(max_size=100),
    }
)


@settings(max_examples=100 * TIMES, deadline=None)
@given(RECORDS)
def test_any_row_is_a_publish_or_parked(record: dict[str, Any]) -> None:
    """A row of the outbox with any values is sent, or refused with a reason for which the relay parks it."""
    try:
        row = row_of(record, max_body_bytes=50)
    except InvalidMessage:
        return
    message, _, remarks = message_of(row.publish.header, "e", "r", row.publish.body)
    assert remarks is None
    assert UUID(str(message.id)) == record["message_id"]
