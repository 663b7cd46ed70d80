"""Refuses JSON whose numbers were chosen so that a dict or set of them takes quadratic time.

The hash of an ``int`` or a ``UUID`` is its value modulo 2**61 - 1, so that anybody can find as many with one hash as
they like: 20,000 of them as keys of a ``dict[int, …]`` stop the event loop for ten seconds. Strings have no such fault,
their hashes differ in each process.
"""

from __future__ import annotations

import re
from collections import Counter

from relmsg.errors import Undecodable

SMALL_BYTES = 20_000  # of a body: so few numbers take milliseconds
MOST_ALIKE = 100
# Numbers of 64 bits have at most 20 digits, and a few dozen of them share a hash at most; Python converts 4,300 digits.
LARGE = re.compile(rb"\d{21,4300}")
IDS = re.compile(rb"[0-9A-Fa-f]{8}-?(?:[0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}")
ESCAPED = re.compile(rb"\\u00(2[Dd]|3[0-9]|[46][1-6])")  # a digit or a dash, as JSON may write it


def require_spread_hashes(body: bytes) -> None:
    """Check the large numbers and the UUIDs of a body that is decoded into other types than those of JSON.

    :raises Undecodable: more than a hundred of them have one hash.
    """
    if len(body) <= SMALL_BYTES:
        return
    text = ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), body).replace(b"_", b"")  # pydantic takes 1_000
    for values in (
        (int(each) for each in _distinct(LARGE, text)),
        (int(each.replace(b"-", b""), 16) for each in _distinct(IDS, text.lower())),
    ):
        if max(Counter(map(hash, values)).values(), default=0) > MOST_ALIKE:
            raise Undecodable(f"over {MOST_ALIKE} of its numbers or UUIDs have one hash: they were chosen to take time")


def _distinct(pattern: re.Pattern[bytes], text: bytes) -> set[bytes]:
    return {each[0] for each in pattern.finditer(text)}
