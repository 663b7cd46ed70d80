"""Decompresses a body by its content encodings, within a size limit."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Final

from relmsg.errors import Undecodable
from relmsg.exceptions import text_of
from relmsg.message import Message

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_ENCODINGS: Final = 4
MAX_MEMBERS: Final = 1000  # of one gzip body; each costs time, also when it is empty
STEP_BYTES: Final = 64 * 1024

GZIP: Final = 16 + zlib.MAX_WBITS
ZLIB: Final = zlib.MAX_WBITS
RAW: Final = -zlib.MAX_WBITS
COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate", "zlib"})
# AMQP clients such as kombu name the charset here. It changes no byte.
UNCHANGED: Final = frozenset({"", "identity", "utf-8", "utf8", "us-ascii", "ascii", "binary", "7bit", "8bit"})


def decompressed(message: Message, limit: int) -> Message:
    """The message with its body decompressed and without a content encoding.

    ``gzip``, ``zlib`` and ``deflate`` (with a zlib header or without) are decompressed, the last one named first. A
    message with any other encoding is returned as it is. An empty body stays empty.

    :raises Undecodable: the body is not what its encoding says, or is larger than ``limit`` bytes when decompressed.
    """
    if not message.content_encoding:
        return message
    encodings = _encodings(message.content_encoding)
    if not encodings or not COMPRESSED.issuperset(encodings):
        return message
    if len(encodings) > MAX_ENCODINGS:
        raise Undecodable(f"the body has {len(encodings)} content encodings; at most {MAX_ENCODINGS} are decoded")
    body = message.body
    assert isinstance(body, bytes)
    for encoding in reversed(encodings):
        body = _decompressed(body, encoding, limit)
    return replace(message, body=body, content_encoding=None)


def require_decoded(message: Message) -> None:
    """Check that nothing but the body itself is left to be read.

    :raises Undecodable: the body has an encoding that relmsg does not decode.
    """
    if message.content_encoding and not COMPRESSED.issuperset(_encodings(message.content_encoding)):
        raise Undecodable(
            f"the content encoding {message.content_encoding!r} is not known: relmsg decodes gzip, zlib and deflate; "
            "ask for bytes or Message to decode the body yourself"
        )


def _encodings(named: str) -> list[str]:
    return [name for each in named.split(",") if (name := each.strip().lower()) not in UNCHANGED]


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    if not body:
        return body
    try:
        if encoding in ("gzip", "x-gzip"):
            return _inflated(body, GZIP, limit, encoding)
        if _has_zlib_header(body):
            try:
                return _inflated(body, ZLIB, limit, encoding)
            except zlib.error:
                if encoding == "zlib":
                    raise
        elif encoding == "zlib":
            raise zlib.error("there is no zlib header")
        return _inflated(body, RAW, limit, encoding)
    except zlib.error as error:
        raise Undecodable(f"the body is not {encoding}, as its content encoding says: {text_of(error)}") from error


def _has_zlib_header(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0


def _inflated(body: bytes, window: int, limit: int, encoding: str) -> bytes:
    """The bytes. Input and output go in steps: time grows with their sizes, memory not much beyond ``limit``."""
    parts: list[bytes] = []
    position = size = 0
    for _ in range(MAX_MEMBERS):
        inflater = zlib.decompressobj(window)
        chunk = b""
        while not inflater.eof:
            if not chunk:
                chunk = body[position : position + STEP_BYTES]
                position += len(chunk)
            part = inflater.decompress(chunk, STEP_BYTES)
            if not chunk and not part and not inflater.eof:
                raise zlib.error("it ends too early")
            chunk = inflater.unconsumed_tail
            size += len(part)
            if size > limit:
                raise Undecodable(
                    f"the {encoding} body is larger than {limit} bytes when decompressed (Inbox(max_body_bytes=…))"
                )
            parts.append(part)
        position -= len(inflater.unused_data)
        if window == GZIP and not body[position : position + STEP_BYTES].strip(b"\0"):
            return b"".join(parts)  # zeros may stand behind the last member
        if position == len(body):
            return b"".join(parts)
        if window != GZIP:
            raise zlib.error("something stands behind its end")
    raise zlib.error(f"it has more than {MAX_MEMBERS} members")
