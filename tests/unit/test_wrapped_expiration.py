"""A moment of expiration becomes a time to live as aio-pika reads it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import aio_pika
import pytest

from relmsg.broker.aio_pika_message import convert


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/New_York"])
def test_a_naive_moment_is_local_time(zone, monkeypatch):
    """F4: five minutes from now are five minutes in every time zone, with and without the zone in the datetime."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for now in (datetime.now(), datetime.now(UTC), datetime.now(timezone(timedelta(hours=9)))):
            message = aio_pika.Message(b"", expiration=now + timedelta(minutes=5))
            expiration = convert(message, "e", "r").expiration
            assert isinstance(expiration, timedelta)
            assert 290 < expiration.total_seconds() <= 300
    finally:
        monkeypatch.undo()
        time.tzset()
