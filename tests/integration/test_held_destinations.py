"""Many destinations that lead nowhere: the others go on, and all of them are counted."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.outbox.backlog import Backlog
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.relaying import emptied, relaying, waiting

Sessions = async_sessionmaker[AsyncSession]
OUTBOX = Outbox("orders")


def to(exchange: str, routing_key: str) -> Message:
    return Message(type="t", exchange=exchange, routing_key=routing_key)


async def commit(sessions: Sessions, *messages: Message) -> None:
    async with sessions() as session, session.begin():
        await OUTBOX.publish_many(session, messages)


async def waits(engine: AsyncEngine, count: int) -> None:
    async def check() -> None:
        assert await waiting(engine) == count

    await eventually(check, within=60)


async def test_two_thousand_keys_without_a_route_hold_up_no_other_key_of_their_exchange(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """A routing key a customer, and no queue for two thousand of them: the messages of the others arrive."""
    await broker.exchange("shop")
    await broker.queue("q", exchange="shop")
    async with relaying(database_url, amqp_url):
        await commit(sessions, *(to("shop", f"customer.{number}") for number in range(2000)))
        await waits(engine, 2000)

        async def all_are_known() -> None:
            assert (await Backlog(engine).status())["held_destinations"] == 2000

        await eventually(all_are_known, within=120)
        await commit(sessions, *(to("shop", "q") for _ in range(10)))
        await waits(engine, 2000)
    assert await broker.count("q") == 10


async def test_all_that_waits_for_a_missing_exchange_is_counted(
    engine: AsyncEngine, sessions: Sessions, database_url: str, amqp_url: str, broker: Broker, relmsg: Any
) -> None:
    """Messages of many routing keys wait for one exchange: status names it once, without a key, with all of them."""
    await broker.exchange("shop")
    async with relaying(database_url, amqp_url):
        await commit(sessions, *(to("missing", f"key {number % 30}") for number in range(300)), to("shop", "nowhere"))

        async def both_are_known() -> None:
            status = await Backlog(engine).status()
            assert [(held["exchange"], held["routing_key"], held["messages"]) for held in status["held"]] == [
                ("missing", None, 300),
                ("shop", "nowhere", 1),
            ]
            assert (status["held_destinations"], status["held_messages"]) == (2, 301)
            assert "no exchange 'missing'" in status["held"][0]["reason"]

        await eventually(both_are_known, within=60)
        code, out, _ = await relmsg("outbox", "status")
        assert code == 0
        assert "300 for exchange 'missing': " in out
        assert json.loads((await relmsg("outbox", "status", "--json"))[1])["held_messages"] == 301

        await broker.exchange("missing", "fanout")
        await broker.queue("late", exchange="missing")
        await broker.queue("found", exchange="shop", routing_key="nowhere")
        await emptied(engine, within=60)
