"""A message that crashes its channel inside the broker: it is found, and costs its neighbours nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.broker.connection import Connection
from relmsg.broker.delivery import Delivery
from relmsg.broker.frame import HEAD
from relmsg.broker.receiving import DELIVER
from relmsg.broker.subscriber import LOSSES_IN_A_ROW, PROVEN, Subscriber
from relmsg.inbox.inbox import Inbox
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running
from tests.support.proxy import Direction, Proxy

POISON = b"crashes the channel"


class Crashing(Direction):
    """Ends the connection instead of letting a certain body arrive, as a broker does whose channel has crashed."""

    def __init__(self) -> None:
        super().__init__()
        self.crashes = 0

    async def admit(self, data: bytes) -> tuple[bytes, bool]:
        if POISON in data:
            self.crashes += 1
            delivery = data.rindex(DELIVER, 0, data.index(POISON)) - HEAD.size
            return data[:delivery], True
        return await super().admit(data)


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


async def test_only_the_message_at_fault_is_dead_lettered(sessions: Any, broker: Broker, amqp_url: str) -> None:
    """A message whose delivery costs the connection, with twelve behind it: these take effect, it alone goes over the
    delivery limit into the error queue, and the consumer goes on."""
    limit = LOSSES_IN_A_ROW + 4
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{QUEUE}.errors",
    }
    await broker.queue(f"{QUEUE}.errors")
    await broker.queue(QUEUE, arguments=arguments)
    inbox = Inbox("billing", sessions)
    inbox.handler("order.placed", queue=QUEUE)(effect)
    ids = [str(number) for number in range(12)]
    await place(broker, "poison", body=POISON)
    await place(broker, *ids)

    async def all_took_effect() -> None:
        assert sorted(await effects(sessions)) == sorted(ids)
        assert await broker.count(f"{QUEUE}.errors") == 1
        assert inbox.ready() is None

    async with Proxy.before(amqp_url) as proxy:
        crashing = proxy.to_client = Crashing()
        async with running(inbox, proxy.through(amqp_url)):
            await eventually(all_took_effect, within=60)
            await place(broker, "later")
            ids.append("later")
            await eventually(all_took_effect, within=20)
    assert crashing.crashes > LOSSES_IN_A_ROW
    (dead,) = await broker.drain(f"{QUEUE}.errors")
    assert dead.message_id == "poison"


async def test_the_prefetch_is_as_before_once_all_is_well(broker: Broker, amqp_url: str) -> None:
    """After three lost channels messages come one at a time; after a hundred acks they come in numbers again."""
    await broker.queue(QUEUE)
    open_now: set[str] = set()
    came: asyncio.Queue[Delivery] = asyncio.Queue()

    def note(delivery: Delivery) -> None:
        open_now.add(str(delivery.message.id))
        came.put_nowait(delivery)

    async with Proxy.before(amqp_url) as proxy, Connection([proxy.through(amqp_url)]) as connection:
        subscriber = Subscriber(connection, QUEUE, note, prefetch=20, chance=lambda: 0.0)
        await subscriber.start()
        keeping = asyncio.create_task(subscriber.run())

        def consumes() -> None:
            assert subscriber.is_consuming

        for _ in range(LOSSES_IN_A_ROW):
            generation = subscriber.generation
            proxy.reset()

            def again(before: int = generation) -> None:
                assert subscriber.generation > before
                assert subscriber.is_consuming

            await eventually(again)
        assert subscriber.takes_one_at_a_time
        await place(broker, *map(str, range(PROVEN + 20)))
        for _ in range(PROVEN):
            delivery = await asyncio.wait_for(came.get(), 20)
            assert len(open_now) == 1
            open_now.clear()
            await delivery.ack()

        def many_came() -> None:
            assert not subscriber.takes_one_at_a_time
            assert len(open_now) >= 19  # one of the last twenty may have been acked on the channel of before

        (await asyncio.wait_for(came.get(), 20)).give_back()
        await eventually(many_came, within=20)
        await eventually(consumes)
        keeping.cancel()
        await subscriber.close()
