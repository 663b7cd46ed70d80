"""Field tables are written in types that every client reads, and read with tolerance."""

from __future__ import annotations

import enum
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode

from relmsg.amqp.decode_table import decode_table
from relmsg.amqp.encode_table import encode_table, encode_value
from relmsg.amqp.remarks import Remarks
from relmsg.broker.encode import table

INT64 = st.integers(-(2**63), 2**63 - 1)
EDGES = st.sampled_from([sign * 2**power + step for power in range(63) for sign in (1, -1) for step in (-1, 0, 1)])
NESTED = st.recursive(
    INT64 | EDGES | st.text(st.characters(exclude_categories=("Cs",))) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
READ_BY_ALL = set(b"IlStVFAdTxD")


class Level(enum.IntEnum):
    HIGH = 200


def letters(data: bytes, *, named: bool) -> set[int]:
    """The types of all values in the content of a table or an array, at any depth."""
    found: set[int] = set()
    position = 0
    while position < len(data):
        if named:
            position += 1 + data[position]
        kind = data[position]
        found.add(kind)
        position += 1
        if kind in b"SFAx":
            size = struct.unpack_from(">I", data, position)[0]
            position += 4
            if kind in b"FA":
                found |= letters(data[position : position + size], named=kind == ord("F"))
        else:
            size = {"I": 4, "l": 8, "d": 8, "T": 8, "t": 1, "V": 0, "D": 5}[chr(kind)]
        position += size
    return found


@given(st.dictionaries(st.sampled_from("abc"), NESTED))
def test_every_value_has_a_type_that_all_clients_read(headers):
    """F1: no integer, at any depth, goes out as one of the types that end the connections of Go, Java and Ruby."""
    for encoded in (encode_table(headers), table(headers) or b"\0\0\0\0"):
        assert letters(encoded[4:], named=True) <= READ_BY_ALL
        assert decode_table(encoded[4:]) == headers
        assert decode.field_table(encoded)[1] == headers


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, 32_767, 65_535, 2**31 - 1, Level.HIGH])
def test_a_small_integer_has_32_bits(value):
    """F1: what fits is sent as an integer of 32 bits, however small it is."""
    assert encode_value(value) == b"I" + int(value).to_bytes(4, "big", signed=True)


@pytest.mark.parametrize("value", [2**31, 2**32 - 1, 2**32, 2**63 - 1, -1, -129, -(2**31), -(2**63)])
def test_a_large_or_negative_integer_has_64_bits(value):
    """F1: what does not fit is sent with 64 bits; so is a negative number, which Ruby would misread in 32."""
    assert encode_value(value) == b"l" + value.to_bytes(8, "big", signed=True)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_an_integer_of_more_than_64_bits_is_refused(value):
    """No integer is cut."""
    with pytest.raises(struct.error):
        encode_value(value)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"u\xff\xfe", 65_534),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l" + b"\xff" * 8, -1),
        (b"f" + struct.pack(">f", 0.5), 0.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"t\x02", True),
        (b"V", None),
        (b"\0", None),
        (b"x\0\0\0\x02\0\xff", bytearray(b"\0\xff")),
        (b"S\0\0\0\x02\xc3\xff", b"\xc3\xff"),
        (b"T\0\0\x01\x8c\xc2\x51\xf4\x7b", datetime(2024, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC)),
    ],
)
def test_every_type_of_other_clients_is_read(encoded, value):
    """All types of RabbitMQ's grammar are read, milliseconds as most clients read them; what stands behind as well."""
    found = decode_table(b"\x01a" + encoded + b"\x01bt\x01")
    assert found == {"a": value, "b": True}
    assert type(found["a"]) is type(value)
    again: dict[str, Any] = decode_table(encode_table(found)[4:])
    assert again["a"] == value, "sent on, it is the same value"


@given(st.binary(max_size=80), NESTED, st.data())
def test_no_bytes_can_do_harm(noise, value, data):
    """Bytes that are no table, or a damaged one, are read with tolerance: nothing is raised."""
    decode_table(noise, Remarks())
    damaged = bytearray(encode_table({"a": value, "b": 1})[4:])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decode_table(bytes(damaged), Remarks())


def test_a_table_of_ten_thousand_levels_is_refused_at_once():
    """Depth is bounded: no recursion follows what a peer has nested."""
    nested = b""
    for _ in range(10_000):
        nested = b"A" + struct.pack(">I", len(nested)) + nested
    remarks = Remarks()
    assert decode_table(b"\x01a" + nested + b"\x01bt\x01", remarks) == {"b": True}
    assert remarks.altered == ["header a (dropped)"]
    assert remarks.fault is not None
