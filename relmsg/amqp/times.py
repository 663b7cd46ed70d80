"""Reads and writes times as AMQP 0-9-1 carries them.

A timestamp is an unsigned number of 64 bits: seconds since 1970, and milliseconds from some clients. An expiration is a
string of milliseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

MOST_SECONDS = 0xFFFFFFFF  # the year 2106; clients read a larger number as milliseconds
MAX_DIGITS = 13  # of an expiration: three hundred years in milliseconds


@lru_cache(maxsize=1024)
def moment_of(number: int) -> datetime:
    """The time a timestamp tells; those of messages that follow each other are mostly the same.

    :raises ValueError, OverflowError, OSError: it lies outside what Python knows, as microseconds do.
    """
    return datetime.fromtimestamp(number if number <= MOST_SECONDS else number / 1000, tz=UTC)


def number_of(moment: datetime) -> int:
    """The timestamp that tells this time: seconds, or milliseconds where it has a fraction of a second.

    What was read by ``moment_of`` is written back as a number that is read to the same time again.
    """
    return round(moment.timestamp() * 1000) if moment.microsecond else int(moment.timestamp())


def span_of(expiration: str | None) -> timedelta | None:
    """The time to live that a message was published with; None where it has none, or says no number."""
    if not expiration or not (expiration.isascii() and expiration.isdigit() and len(expiration) <= MAX_DIGITS):
        return None
    return timedelta(milliseconds=int(expiration))
