"""Decodes field tables: strictly and fast, or with tolerance, where one value at fault costs only itself."""

from __future__ import annotations

import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from relmsg.amqp.remarks import Remarks
from relmsg.amqp.times import moment_of

SIZE = struct.Struct(">I")
MAX_DEPTH = 32
MAX_SHOWN = 64  # characters of a name
LONG_STRING, TABLE, ARRAY, BYTES, TIME = b"SFAxT"
NUMBERS: dict[int, struct.Struct] = {
    ord(letter): struct.Struct(f">{size}")
    for letter, size in {"b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q"}.items()
} | {ord("f"): struct.Struct(">f"), ord("d"): struct.Struct(">d")}
INT64_UNSIGNED = struct.Struct(">Q")
DECIMAL = struct.Struct(">Bi")
VOIDS = b"V\0"  # RabbitMQ's erratum, and what some clients send
BOOLEAN, SCALED = ord("t"), ord("D")


def decode_table(table: bytes, remarks: Remarks | None = None) -> dict[str, Any]:
    """The entries of a field table that is given without its length.

    A string that is not UTF-8 becomes bytes. With ``remarks`` nothing is raised: a time that Python cannot tell is left
    out; so is what cannot be read at all, and then the remarks have a fault as well. The remarks name all of it.

    :raises ValueError, struct.error, IndexError, OverflowError, OSError: without ``remarks``, what cannot be read.
    """
    found: dict[str, Any] = {}
    position, size = 0, len(table)
    while position < size:
        start = position + 1
        position = start + table[position]
        raw = table[start:position]
        try:
            name = raw.decode()
            kind = table[position]
            if kind == LONG_STRING:
                start = position + 5
                position = start + SIZE.unpack_from(table, position + 1)[0]
                if position > size:
                    raise ValueError(f"header {name!r} is longer than its table")
                value = table[start:position]
                try:
                    found[name] = value.decode()
                except UnicodeDecodeError:
                    found[name] = value
            else:
                found[name], position = _value(table, position, 1)
        except Exception as error:
            if remarks is None:
                raise
            remarks.left_out(
                f"header {raw.decode(errors='replace')[:MAX_SHOWN]}",
                None if isinstance(error, TimeUnknown) else error,
            )
            following = _skip(table, start + len(raw))
            if following is None:
                break
            position = following
    return found


class TimeUnknown(ValueError):
    """A timestamp outside what Python knows."""


class TooDeep(ValueError):
    """Tables and arrays are nested more than 32 deep."""


def _value(data: bytes, position: int, depth: int) -> tuple[Any, int]:
    """A value behind the letter of its type, and where the next one begins."""
    kind = data[position]
    position += 1
    if (number := NUMBERS.get(kind)) is not None:
        return number.unpack_from(data, position)[0], position + number.size
    if kind == BOOLEAN:
        return data[position] != 0, position + 1
    if kind in VOIDS:
        return None, position
    if kind == TIME:
        seconds = INT64_UNSIGNED.unpack_from(data, position)[0]
        try:
            return moment_of(seconds), position + 8
        except (ValueError, OverflowError, OSError) as error:
            raise TimeUnknown(f"the timestamp {seconds} is no time that Python knows") from error
    if kind == SCALED:
        scale, unscaled = DECIMAL.unpack_from(data, position)
        return Decimal(unscaled).scaleb(-scale), position + DECIMAL.size
    read = CONTAINERS.get(kind)
    if read is None:
        raise ValueError(f"AMQP 0-9-1 has no field type {bytes((kind,))!r}")
    start = position + SIZE.size
    end = start + SIZE.unpack_from(data, position)[0]
    if end > len(data):
        raise ValueError("a value is longer than its table")
    return read(data[start:end], depth), end


def _string(raw: bytes, _: int) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _bytes(raw: bytes, _: int) -> bytearray:
    return bytearray(raw)


def _array(raw: bytes, depth: int) -> list[Any]:
    _require_shallow(depth)
    items, position = [], 0
    while position < len(raw):
        item, position = _value(raw, position, depth + 1)
        items.append(item)
    return items


def _table(raw: bytes, depth: int) -> dict[str, Any]:
    _require_shallow(depth)
    found: dict[str, Any] = {}
    position = 0
    while position < len(raw):
        start = position + 1
        position = start + raw[position]
        found[raw[start:position].decode()], position = _value(raw, position, depth + 1)
    return found


def _require_shallow(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TooDeep(f"tables and arrays are nested more than {MAX_DEPTH} deep")


CONTAINERS: dict[int, Callable[[bytes, int], Any]] = {
    LONG_STRING: _string,
    BYTES: _bytes,
    ARRAY: _array,
    TABLE: _table,
}


def _skip(data: bytes, position: int) -> int | None:
    """Where the value that begins here ends; None where that cannot be known."""
    if position >= len(data):
        return None
    kind = data[position]
    if (number := NUMBERS.get(kind)) is not None:
        end = position + 1 + number.size
    elif kind == BOOLEAN:
        end = position + 2
    elif kind in VOIDS:
        end = position + 1
    elif kind == TIME:
        end = position + 9
    elif kind == SCALED:
        end = position + 1 + DECIMAL.size
    elif kind in CONTAINERS and position + 5 <= len(data):
        end = position + 5 + SIZE.unpack_from(data, position + 1)[0]
    else:
        return None
    return end if end <= len(data) else None
