"""The broker freezes under a consumer: when it is back, everything is consumed."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from compose.local import Services
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, left, place, running
from tests.support.proxy import Proxy


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.mark.parametrize("seconds", [5, 40])
async def test_all_is_consumed_after_a_broker_was_frozen(
    sessions: Any, broker: Broker, amqp_url: str, services: Services, seconds: int
) -> None:
    """RabbitMQ is stopped while error copies are pending, and the connection of the deliveries is lost: afterwards good
    messages have taken effect once, failed ones are in the error queue, and the consumer is ready and live."""
    await broker.queue(QUEUE)
    inbox, freeze = Inbox("billing", sessions, heartbeat=2.0), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1), group=1)
    async def handle(message: Message, session: AsyncSession) -> None:
        if int(str(message.id)) % 5 == 0:
            if int(str(message.id)) >= 50 and not freeze.is_set():
                os.kill(services.broker_pid, signal.SIGSTOP)
                freeze.set()
            raise ValueError("no")
        await effect(session, message)

    ids = [str(number) for number in range(300)]
    good = sorted(each for each in ids if int(each) % 5)
    await place(broker, *ids)
    async with Proxy.before(amqp_url) as proxy, running(inbox, proxy.through(amqp_url)):
        await asyncio.wait_for(freeze.wait(), 30)
        try:
            await asyncio.sleep(seconds / 2)  # what is tested is an outage of this length
            proxy.reset()
            await asyncio.sleep(seconds / 2)
        finally:
            os.kill(services.broker_pid, signal.SIGCONT)

        async def all_took_effect() -> None:
            assert sorted(await effects(sessions)) == good
            assert inbox.ready() is None

        await eventually(all_took_effect, within=90)
        assert inbox.live() is None
    assert await left(broker) == 0
    assert {copy.message_id for copy in await broker.drain(f"{QUEUE}.errors")} == set(ids).difference(good)
