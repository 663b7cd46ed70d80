"""What we believe of pamqp: which values it damages in silence, and in how many ways it can fail."""

from __future__ import annotations

import struct
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from pamqp import commands, decode, encode, frame
from pamqp.header import ContentHeader


def sent_and_received(table: dict) -> dict:
    return decode.field_table(encode.field_table(table))[1]


def test_a_float_is_sent_with_32_bits():
    """P8: a float loses digits: an epoch second comes back up to 64 s off."""
    moment = 1_700_000_029.0
    received = sent_and_received({"at": moment})["at"]
    assert received != moment
    assert abs(received - moment) <= 64


def test_a_header_name_is_cut_at_128_characters():
    """P8: header names are cut without a word, so that two long ones become one."""
    assert sent_and_received({"n" * 128 + "a": 1}) == {"n" * 128: 1}
    assert len(sent_and_received({"n" * 128 + "a": 1, "n" * 128 + "b": 2})) == 1


def test_a_datetime_loses_its_microseconds():
    """P8: datetimes are sent in whole seconds."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    assert sent_and_received({"at": moment})["at"] == moment.replace(microsecond=0)


def test_a_timestamp_after_2106_is_read_as_milliseconds():
    """P8: a number of seconds over 32 bits is taken for milliseconds, which is another time altogether."""
    last = datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)
    assert decode.timestamp(encode.timestamp(last))[1] == last
    assert decode.timestamp(encode.timestamp(last + timedelta(seconds=1)))[1].year == 1970


def test_a_header_table_comes_back_sorted():
    """The order of headers is not kept: names are sorted on the way."""
    assert list(sent_and_received({"b": 1, "a": 2})) == ["a", "b"]


@pytest.mark.parametrize(
    ("properties", "error"),
    [
        ({"headers": {"a": object()}}, TypeError),
        ({"headers": {"a": uuid.uuid4()}}, TypeError),
        ({"headers": {"a": 2**64}}, TypeError),
        ({"headers": {"a": 3.5e38}}, OverflowError),
        ({"headers": {"a": "\ud800"}}, UnicodeEncodeError),
        ({"timestamp": datetime(1969, 1, 1, tzinfo=UTC)}, struct.error),
        ({"message_id": "x" * 256}, TypeError),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_encoding_fails_in_many_families(properties, error):
    """P7: values that cannot be encoded raise errors that have only Exception in common."""
    with pytest.raises(error):
        frame.marshal(ContentHeader(properties=commands.Basic.Properties(**properties)), 1)


@pytest.mark.parametrize("name", ["e" * 128, "ümlaut", "a*b"])
def test_exchange_names_are_judged_when_writing_and_not_when_reading(name):
    """pamqp refuses to publish to exchange names that RabbitMQ takes, and reads them without a complaint."""
    with pytest.raises(ValueError, match="exchange"):
        commands.Basic.Publish(exchange=name, routing_key="r")
    raw = name.encode()
    arguments = struct.pack(">HHH", 60, 40, 0) + bytes([len(raw)]) + raw + b"\x01r\x01"
    data = struct.pack(">BHI", 1, 1, len(arguments)) + arguments + b"\xce"
    assert frame.unmarshal(data)[2].exchange == name
