"""A flood of messages that fail does not flood the log."""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid4

import pytest
from sqlalchemy import func, insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Inbox, Message
from relmsg.half.checking import HalfMessage
from relmsg.half.fence import Fence
from relmsg.half.producer import HalfProducer
from relmsg.half.protocol import COORDINATOR, checks_of
from relmsg.half.state import HalfState, Resolution
from relmsg.inbox.identity import Identity
from relmsg.inbox.outcome import Unsettled
from relmsg.inbox.starts import Starts
from relmsg.inbox.store import Store
from relmsg.schema import tables
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, place, running, settled
from tests.support.halves import coordinating

LINES = 20
NOBODY = "postgresql+asyncpg://nobody@127.0.0.1:1/none"


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


async def test_checks_that_cannot_be_answered_are_counted_in_one_line(
    amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody floods a group's queue with what is no check: twenty lines, and one tells of the others."""
    caplog.set_level(logging.INFO)
    half = HalfProducer(amqp_url, group="shop")

    @half.checker("*")
    async def check(asked: HalfMessage) -> Resolution:
        return Resolution.UNKNOWN

    async with half:

        async def flooded() -> None:
            assert await broker.consumers(checks_of("shop").name) == 1

        await eventually(flooded)
        for _ in range(100):
            await broker.publish(b"", routing_key=checks_of("shop").name, message_id=str(uuid4()))

        def told() -> None:
            assert lines(caplog, "could not be answered")[0] == LINES
            assert "and 80 more such lines" in "".join(lines(caplog, "could not be answered")[1])

        await eventually(told, within=20)


async def test_fences_that_cannot_be_asked_are_counted_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A fence whose database is away is asked about a hundred half messages: twenty lines, and one tells the rest."""
    caplog.set_level(logging.INFO)
    fence, engine = Fence(), create_async_engine(NOBODY)
    for _ in range(100):
        assert await fence.resolve(engine, uuid4()) is Resolution.UNKNOWN
    await engine.dispose()

    def told() -> None:
        assert lines(caplog, "cannot be asked for")[0] == LINES
        assert "and 80 more such lines" in "".join(lines(caplog, "cannot be asked for")[1])

    await eventually(told, within=20)


async def test_starts_that_cannot_be_taken_back_are_counted_in_one_line(
    sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The table goes away while thirty redelivered messages are handled: twenty lines, and one tells the rest."""
    caplog.set_level(logging.INFO)
    starts, begun, gone = Starts(sessions, Store()), list[str](), asyncio.Event()

    async def attempt() -> Unsettled:
        begun.append("one")
        await gone.wait()
        return Unsettled(ConnectionError())

    attempts = [asyncio.create_task(starts.counted(Identity("billing", "s", str(each)), attempt)) for each in range(30)]

    def all_begun() -> None:
        assert len(begun) == 30

    await eventually(all_begun, within=20)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE relmsg.inbox_attempt RENAME TO gone")
    gone.set()
    await asyncio.gather(*attempts)

    def told() -> None:
        assert lines(caplog, "could not be taken back")[0] == LINES
        assert "and 10 more such lines" in "".join(lines(caplog, "could not be taken back")[1])

    await eventually(told, within=20)


async def test_answers_of_coordinators_that_say_nothing_are_counted_in_one_line(
    amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Decisions to which nobody answers: twenty lines name their half messages, and one tells of the others."""
    caplog.set_level(logging.INFO)
    await broker.queue(COORDINATOR)
    async with HalfProducer(amqp_url, group="shop", answer_within=0.01) as half:
        for _ in range(100):
            assert await half.commit(uuid4()) is HalfState.UNKNOWN

        def told() -> None:
            assert lines(caplog, "no coordinator has answered")[0] == LINES
            assert "and 80 more such lines" in "".join(lines(caplog, "no coordinator has answered")[1])

        await eventually(told, within=20)
