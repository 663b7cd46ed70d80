"""What may stand in the headers of a message, and why.

The rules come from what AMQP 0-9-1 clients do to values they cannot carry: pamqp sends a float with 32 bits, cuts
names at 128 bytes and drops microseconds, each without an error; RabbitMQ routes copies by ``CC`` and ``BCC``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from relmsg.amqp.encode_table import encode_table
from relmsg.arguments import shown
from relmsg.errors import HeaderNameRefused, HeaderRefused, HeadersTooLarge
from relmsg.exceptions import text_of

RESERVED = ("x-", "relmsg-", "CC", "BCC")
MAX_NAME_BYTES = 128
MAX_BYTES = 16 * 1024
MAX_DEPTH = 32  # a decoder recurses for every level; past a few hundred, the consumer's own stack would end


def check_headers(headers: Any, *, reserved_bytes: int = 0) -> None:
    """Hold a publisher's headers against every rule; ``reserved_bytes`` are taken by what relmsg adds itself.

    :raises HeaderNameRefused: a name is reserved, empty or over 128 bytes.
    :raises HeaderRefused: a value, at any depth, is not str, int (64 bit), bool, None, list or dict; or lists and dicts
        are nested more than 32 deep.
    :raises HeadersTooLarge: all of them together take more than 16 KiB.
    """
    if headers.__class__ is dict and _is_plain(headers, MAX_BYTES - reserved_bytes):
        return
    if not isinstance(headers, Mapping):
        raise HeaderRefused(f"headers are a mapping of names to values, not {type(headers).__name__}")
    for name in headers:
        if isinstance(name, str) and name.startswith(RESERVED):
            raise HeaderNameRefused(
                f"header {name!r}: names that begin with {', '.join(RESERVED)} belong to RabbitMQ and relmsg"
            )
    _check_value("headers", dict(headers))
    size = encoded_size(headers) + reserved_bytes
    if size > MAX_BYTES:
        raise HeadersTooLarge(f"the headers take {size} bytes, at most {MAX_BYTES} may: put data into the body")


def encoded_size(headers: Mapping[str, Any]) -> int:
    """The bytes an AMQP field table with these headers takes."""
    return len(encode_table(headers))


def _is_plain(headers: dict[Any, Any], room: int) -> bool:
    """Whether these are headers like most: flat, their names in ASCII, and so small that no table has to be encoded to
    know it."""
    for name, value in headers.items():
        if name.__class__ is not str or len(name) > MAX_NAME_BYTES or not _is_plain_name(name):
            return False
        room -= len(name) + 10  # its length, the type, and the length of a string or a number of 64 bits
        if value.__class__ is str:
            if "\0" in value:
                return False
            try:
                room -= len(value.encode())
            except UnicodeEncodeError:
                return False
        elif value.__class__ is int:
            if not -(2**63) <= value < 2**63:
                return False
        elif value is not None and value.__class__ is not bool:
            return False
    return room >= 4


@lru_cache(maxsize=4096)
def _is_plain_name(name: str) -> bool:
    return name != "" and name.isascii() and "\0" not in name and not name.startswith(RESERVED)


def _check_value(path: str, value: Any, depth: int = 0) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(path, value)
    elif isinstance(value, int):
        # Compared, not looked up in a range: for a subclass such as IntEnum that would count through all of it.
        if not -(2**63) <= value < 2**63:
            raise HeaderRefused(f"{path}: an integer of {value.bit_length()} bits does not fit into 64: send a string")
    elif isinstance(value, float):
        raise HeaderRefused(
            f"{path}: a float would lose digits on the way (AMQP libraries send 32 bits): send a string"
        )
    elif isinstance(value, list | dict) and depth > MAX_DEPTH:
        raise HeaderRefused(f"{path[:64]}…: nested more than {MAX_DEPTH} deep: put data into the body")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_value(f"{path}[{position}]", item, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_name(path, name)
            _check_value(f"{path}[{name!r}]", item, depth + 1)
    else:
        raise HeaderRefused(f"{path}: a {type(value).__name__} cannot be sent; {HeaderRefused.__doc__}")


def _check_name(path: str, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise HeaderNameRefused(f"{path}: header names are non-empty strings, not {shown(name)}")
    _check_text(f"{path}, name {shown(name)}", name)
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise HeaderNameRefused(f"{path}: the name {name[:32]!r}… takes {size} bytes, at most {MAX_NAME_BYTES} may")


def _check_text(path: str, value: str) -> None:
    if "\0" in value:
        raise HeaderRefused(f"{path}: a NUL character cannot be stored by PostgreSQL")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise HeaderRefused(f"{path}: not valid Unicode: {text_of(error)}") from error
