"""A flood of messages that fail does not flood the log."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest
from sqlalchemy import func, insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Inbox, Message
from relmsg.half.state import HalfState
from relmsg.schema import tables
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, place, running, settled
from tests.support.halves import coordinating

LINES = 20


def lines(caplog: pytest.LogCaptureFixture, words: str) -> tuple[int, list[str]]:
    """How many lines have these words, and those that tell of more."""
    found = [each for each in caplog.messages if words in each]
    more = [each for each in found if each.startswith("and ")]
    return len(found) - len(more), more


async def test_messages_that_fail_are_counted_in_one_line(
    sessions: async_sessionmaker[AsyncSession], amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty lines name theirs when it is tried again and when it is in the error queue; one tells of the others."""
    caplog.set_level(logging.INFO)
    await broker.queue(QUEUE)
    await place(broker, *(str(uuid4()) for _ in range(100)))
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue=QUEUE, retry=2)
    async def fail(message: Message) -> None:
        raise ValueError

    async with running(inbox, amqp_url):
        await settled(inbox, failed=100)

        def told() -> None:
            for words in ("is in the error queue", "tried again"):
                assert lines(caplog, words)[0] == LINES
                assert "and 80 more such lines" in "".join(lines(caplog, words)[1])

        await eventually(told, within=20)


async def test_half_messages_that_are_parked_are_counted_in_one_line(
    engine: AsyncEngine, database_url: str, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty lines name theirs; one tells of the others."""
    caplog.set_level(logging.INFO)
    row = {"producer_group": "shop", "state": HalfState.PREPARED, "exchange": "", "routing_key": "q", "body": b""}
    row |= {"checks": 15, "max_checks": 15, "check_sent": 15, "check_received": 15}
    times = {"prepared_at": func.clock_timestamp(), "next_check_at": func.clock_timestamp()}
    async with engine.begin() as connection:
        for _ in range(100):
            await connection.execute(insert(tables().half_message).values(half_id=uuid4(), **row, **times))
    async with coordinating(database_url, amqp_url):

        def told() -> None:
            assert lines(caplog, "is parked")[0] == LINES
            assert "and 80 more such lines" in "".join(lines(caplog, "is parked")[1])

        await eventually(told, within=30)
