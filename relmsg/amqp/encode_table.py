"""Encodes the values of a field table in types that every client of RabbitMQ reads.

pamqp sends an integer in the smallest type that holds it: ``b``, ``s``, ``u``, ``i``. The clients for Go, Java and Ruby
do not know all of these and close their connection at the first one. Here an integer is ``l`` (64 bits, signed), or
``I`` (32 bits) from 0 to 2**31 - 1: Ruby reads ``I`` without a sign. A float is ``d`` (64 bits). All clients know
these three.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from relmsg.amqp.times import number_of

SIZE = struct.Struct(">I")
INT32 = struct.Struct(">ci")
INT64 = struct.Struct(">cq")
DOUBLE = struct.Struct(">cd")
TIME = struct.Struct(">cQ")
DECIMAL = struct.Struct(">cBi")
TRUE, FALSE, VOID = b"t\x01", b"t\x00", b"V"


def encode_table(table: Mapping[str, Any]) -> bytes:
    """A field table with its length in front; its entries are sorted by name.

    :raises ValueError, TypeError, OverflowError, struct.error, RecursionError: a name or value that AMQP cannot carry.
    """
    whole = b"".join(encode_name(name) + encode_value(table[name]) for name in sorted(table))
    return SIZE.pack(len(whole)) + whole


def encode_name(name: str) -> bytes:
    """The name of a field. :raises ValueError: it takes over 255 bytes, or is not valid Unicode."""
    raw = name.encode()
    return bytes((len(raw),)) + raw  # a ValueError past 255


def encode_value(value: Any) -> bytes:
    """A value behind the letter of its type. Errors as for ``encode_table``."""
    if isinstance(value, str):
        raw = value.encode()
        return b"S" + SIZE.pack(len(raw)) + raw
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, int):
        return INT32.pack(b"I", value) if 0 <= value < 2**31 else INT64.pack(b"l", value)
    if value is None:
        return VOID
    if isinstance(value, Mapping):
        return b"F" + encode_table(value)
    if isinstance(value, list | tuple):
        whole = b"".join(map(encode_value, value))
        return b"A" + SIZE.pack(len(whole)) + whole
    if isinstance(value, datetime):
        return TIME.pack(b"T", number_of(value))
    if isinstance(value, float):
        return DOUBLE.pack(b"d", value)
    if isinstance(value, bytes | bytearray):
        return b"x" + SIZE.pack(len(value)) + value
    if isinstance(value, Decimal):
        return _decimal(value)
    raise TypeError(f"a {type(value).__name__} has no type in an AMQP field table")


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise TypeError(f"{value} has no type in an AMQP field table")
    unscaled = int("".join(map(str, digits))) * (-1 if sign else 1)
    if exponent > 0:
        unscaled, exponent = unscaled * 10**exponent, 0
    return DECIMAL.pack(b"D", -exponent, unscaled)
