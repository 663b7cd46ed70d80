"""Compressed bodies, and what a hostile one may cost."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial

import pytest

from relmsg.codec import decoder_for
from relmsg.errors import Undecodable
from relmsg.inbox.handle.content_encoding import decompressed
from relmsg.message import Message

TEXT = b'{"id": 7}' * 20_000


# Without the time, which would give each process that collects these tests other bytes.
compress = partial(gzip.compress, mtime=0)


def named(value: object) -> str:
    """A short name for a parameter: the encoding, and not the body."""
    return value if isinstance(value, str) else "body"


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def received(body: bytes, encoding: str | None, limit: int = 2**20) -> Message:
    return decompressed(Message(body=body, content_encoding=encoding), limit)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", compress(TEXT)),
        ("GZIP", compress(TEXT)),
        ("x-gzip", compress(TEXT)),
        ("zlib", zlib.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("gzip, deflate", zlib.compress(compress(TEXT))),
        ("deflate,gzip", compress(raw_deflate(TEXT))),
        ("identity, gzip", compress(TEXT)),
        ("gzip", compress(TEXT[:100]) + compress(TEXT[100:]) + b"\0" * 9),
    ],
    ids=named,
)
def test_a_compressed_body_is_decompressed_and_has_no_encoding_any_more(encoding: str, body: bytes) -> None:
    """Each known encoding is undone, in the reverse of the order in which they are named."""
    message = received(body, encoding)
    assert message.body == TEXT
    assert message.content_encoding is None


@pytest.mark.parametrize("encoding", [None, "identity", "utf-8", "br", "gzip, br", "br, gzip"])
def test_a_body_without_a_known_compression_stays_as_it_came(encoding: str | None) -> None:
    """No compression, a charset or an unknown encoding changes neither body nor property."""
    message = received(b"\x1f\x8b as it came", encoding)
    assert (message.body, message.content_encoding) == (b"\x1f\x8b as it came", encoding)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", TEXT),
        ("gzip", compress(TEXT)[:-9]),
        ("gzip", compress(TEXT)[:-1] + b"\xff"),
        ("gzip", compress(TEXT) + b"more"),
        ("zlib", raw_deflate(TEXT)),
        ("zlib", zlib.compress(TEXT) + b"more"),
        ("deflate", zlib.compress(TEXT)[:-5]),
        ("deflate", b"\xff\xff\xff"),
        (", ".join(["gzip"] * 5), b"x"),
    ],
    ids=named,
)
def test_a_body_that_is_not_what_its_encoding_says_is_undecodable(encoding: str, body: bytes) -> None:
    """Cut, damaged, mislabelled and endlessly nested bodies all raise the same error."""
    with pytest.raises(Undecodable):
        received(body, encoding)


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    """The limit counts decompressed bytes."""
    assert received(compress(b"x" * 100_000), "gzip", 100_000).body == b"x" * 100_000
    with pytest.raises(Undecodable, match="larger than 99999 bytes"):
        received(compress(b"x" * 100_000), "gzip", 99_999)


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", lambda: compress(bytes(300 * 2**20), 1)),
        ("gzip, gzip", lambda: compress(compress(bytes(300 * 2**20), 1))),
        ("gzip", lambda: compress(b"") * 500_000),
    ],
    ids=named,
)
def test_a_bomb_is_undecodable_before_it_is_whole(encoding: str, bomb: Callable[[], bytes]) -> None:
    """Zeros, nested zeros and half a million empty members are never decompressed into memory."""
    body = bomb()
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable):
            received(body, encoding)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 8 * 2**20
    finally:
        tracemalloc.stop()


def test_an_empty_body_stays_empty() -> None:
    """Clients that name an encoding for every message send empty bodies as they are."""
    assert received(b"", "gzip").body == b""


def test_a_byte_order_mark_before_text_and_json_is_skipped_and_kept_in_bytes() -> None:
    """Only what is decoded loses the mark."""
    marked = "\ufeff{}".encode()
    for target, expected in ((dict, {}), (str, "{}"), (bytes, marked)):
        decode = decoder_for(target)
        assert decode is not None
        assert decode(marked) == expected
