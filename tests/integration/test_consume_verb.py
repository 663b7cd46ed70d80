"""What `relmsg consume` says while it works."""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker

from relmsg import Inbox
from relmsg.cli import consume
from relmsg.inbox.outcome import Duplicate, Handled
from relmsg.testing import eventually


async def test_once_a_minute_it_says_what_came_of_the_messages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A minute in which messages came to an end has a line with the count of each end; an idle one has none."""
    monkeypatch.setattr(consume, "MINUTE", 0.01)
    caplog.set_level(logging.INFO)
    inbox = Inbox("billing", async_sessionmaker())
    inbox.metrics.settled("billing", "orders", Handled(), 5)
    telling = asyncio.create_task(consume._tell_each_minute(inbox))
    await asyncio.sleep(0)
    assert caplog.messages == []
    inbox.metrics.settled("billing", "orders", Handled(), 1200)
    inbox.metrics.settled("billing", "refunds", Handled(), 34)
    inbox.metrics.settled("billing", "orders", Duplicate(), 2)

    async def told() -> None:
        assert caplog.messages == ["billing: in the last minute duplicate 2, handled 1,234"]

    await eventually(told)
    await asyncio.sleep(0.05)
    await told()
    telling.cancel()
