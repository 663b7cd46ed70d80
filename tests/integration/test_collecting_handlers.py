"""Handlers of an inbox that publish through a collecting outbox: the commit there is the inbox's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from relmsg import Message, Outbox, Retry
from relmsg.clock import SystemClock
from relmsg.inbox.attempt import Attempts, Task
from relmsg.inbox.gate import Gate
from relmsg.inbox.handler import Handler, parameters
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import Duplicate, Failed, Handled, HandlerEndedTransaction, Outcome
from relmsg.inbox.rest import Rest
from relmsg.inbox.store import Store

SHIPPED = Message(type="order.shipped", body={"id": 7}, exchange="shop", routing_key="o")
Sessions = async_sessionmaker[AsyncSession]


class Woken:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture(params=[True, False], ids=["collecting", "at once"])
def outbox(request: pytest.FixtureRequest, woken: Woken) -> Outbox:
    return Outbox("shipping", collect=request.param, wake=woken)


async def handle(sessions: Sessions, function: Any) -> Outcome:
    metrics = Metrics()
    attempts = Attempts(sessions, Store(), Gate("database"), metrics, Rest(), SystemClock())
    handler = Handler(
        type="t", queue="q", consumer="c", function=function, retry=Retry(attempts=2, base=0, cap=0), timeout=30,
        parameters=parameters(function),
    )  # fmt: skip
    task = Task(handler, Message(id="1", body=b"{}"), Identity(consumer="c", source="s", message_id="1"), None)
    return await attempts.handle(task, lambda attempt: attempt())


async def published(sessions: Sessions) -> int:
    await asyncio.sleep(0)
    async with sessions() as session:
        return await session.scalar(text("SELECT count(*) FROM relmsg.outbox_message")) or 0


async def test_what_a_handler_published_is_committed_once_with_its_effect(
    sessions: Sessions, outbox: Outbox, woken: Woken
) -> None:
    """The first attempt fails after its publish and leaves nothing, the second is committed, a copy does nothing."""
    attempts: list[int] = []

    async def ship(message: Message, session: AsyncSession) -> None:
        attempts.append(1)
        await outbox.publish(session, SHIPPED)
        if len(attempts) == 1:
            raise RuntimeError("not yet")

    assert isinstance(await handle(sessions, ship), Handled)
    assert isinstance(await handle(sessions, ship), Duplicate)
    assert (len(attempts), await published(sessions), woken.calls) == (2, 1, 1)


async def test_a_handler_that_fails_publishes_nothing(sessions: Sessions, outbox: Outbox, woken: Woken) -> None:
    """Its transaction is rolled back, whatever it had published."""

    async def ship(message: Message, session: AsyncSession) -> None:
        async with session.begin_nested():
            await outbox.publish(session, SHIPPED)
        raise RuntimeError("never")

    assert isinstance(await handle(sessions, ship), Failed)
    assert (await published(sessions), woken.calls) == (0, 0)


async def test_a_handler_cannot_commit_what_it_collected(sessions: Sessions, outbox: Outbox, woken: Woken) -> None:
    """The refused commit writes nothing and wakes nobody."""

    async def ship(message: Message, session: AsyncSession) -> None:
        await outbox.publish(session, SHIPPED)
        await session.commit()

    outcome = await handle(sessions, ship)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, HandlerEndedTransaction)
    assert (await published(sessions), woken.calls) == (0, 0)


@pytest.mark.parametrize("collect", [True, False])
async def test_a_publish_that_failed_is_never_acked(sessions: Sessions, collect: bool) -> None:
    """A row that cannot be written fails the attempt: also where the handler swallows the error, and the database would
    answer our COMMIT with a rollback."""
    nowhere = Outbox("shipping", schema="nowhere", collect=collect)

    async def ship(message: Message, session: AsyncSession) -> None:
        try:
            await nowhere.publish(session, SHIPPED)
        except DBAPIError:
            return

    outcome = await handle(sessions, ship)
    assert isinstance(outcome, Failed)
    assert "nowhere" in str(outcome.error) or "aborted" in str(outcome.error)
