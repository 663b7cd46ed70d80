"""Broken and hostile messages through a real broker, by frames that are written by hand, among good ones."""

from __future__ import annotations

import json
import os
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import HalfProducer, Inbox, Message, Publisher, Retry
from relmsg.half.protocol import COORDINATOR
from relmsg.testing import eventually
from tests.fuzz.mutator import Mutator, Sample
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effects, left, running
from tests.support.halves import coordinating, outbox_rows
from tests.support.processes import Processes
from tests.support.raw_amqp import RawPublisher

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "11"))
BAD, GOOD = 40 * TIMES, 999


def behind_size(sample: Sample) -> bytes:
    """The flags and properties of a content header."""
    return sample.header[12:]


async def test_good_messages_are_handled_whatever_comes_between(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, processes: Processes
) -> None:
    """Consumer and coordinator settle all that RabbitMQ takes, go on and are ready; `relmsg errors` lists the rest."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    inbox, mutator = Inbox("billing", sessions), Mutator(SEED)

    @inbox.handler("good", queue=QUEUE, retry=Retry(attempts=1))
    async def handle(messages: list[Message], session: AsyncSession) -> None:
        connection = await session.connection()
        for message in messages:
            await connection.exec_driver_sql("INSERT INTO effect (id) VALUES ($1)", (str(message.id),))

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def refuse(event: dict[str, Any], session: AsyncSession) -> None:
        raise ValueError(str(event))

    good = [Message(type="good", routing_key=QUEUE, body=b"{}", id=f"good-{number}") for number in range(GOOD)]
    taken = 0
    async with (
        coordinating(database_url, amqp_url) as coordinator,
        running(inbox, amqp_url),
        Publisher(amqp_url) as publisher,
        RawPublisher(amqp_url) as raw,
    ):
        every = max(1, GOOD // BAD)
        for number in range(BAD):
            sample = mutator.next()
            taken += await raw.publish(QUEUE, behind_size(sample), sample.body)
            await raw.publish(COORDINATOR, behind_size(sample), sample.body)
            await raw.publish(f"{QUEUE}.errors", behind_size(sample), sample.body)
            await publisher.publish_many(good[number * every : (number + 1) * every])
        await publisher.publish_many(good[BAD * every :])
        async with HalfProducer(amqp_url, group="payments") as half, half.begin(Message(type="t", routing_key="q")):
            pass

        async def all_settled() -> None:
            assert len([each for each in await effects(sessions) if each.startswith("good-")]) == GOOD
            assert "t" in {row.type for row in await outbox_rows(engine)}
            assert await broker.count(QUEUE) == await broker.count(COORDINATOR) == 0

        await eventually(all_settled, within=120)
        assert (inbox.live(), inbox.ready()) == (None, None)
        assert (coordinator.live(), coordinator.ready()) == (None, None)
    assert taken >= BAD // 4, "most of what was sent has to reach the consumer"
    assert await left(broker) == 0
    for queue in (QUEUE, COORDINATOR):
        process = await processes.relmsg("errors", "list", "--queue", queue, "--limit", "100000", "--json")
        assert await process.wait(within=60) == 0, process.stderr
        assert len(json.loads(process.stdout)) == await broker.count(f"{queue}.errors")
