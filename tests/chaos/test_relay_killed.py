"""SIGKILL of the relay at every failpoint: whatever it was doing, each effect happens once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Inbox, Message, Outbox
from relmsg.failpoint import FAILPOINTS
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Processes
from tests.support.relaying import emptied, waiting

POINTS = [name for name in FAILPOINTS if name.startswith(("relay.", "publish."))]
BATCH = 40
MESSAGES = 300
QUICK = {"RELMSG_BATCH": str(BATCH), "RELMSG_LEASE": "2", "RELMSG_RENEW": "0.5", "RELMSG_PROBES": ""}


def effects(inbox: Inbox) -> None:
    """A handler with no idempotence of its own: doing it twice would show."""

    @inbox.handler("counted", queue="effects")
    async def count(message: Message, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect (message_id) VALUES (:id)"), {"id": str(message.id)})


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_effects_are_what_was_committed_each_once(
    point: str,
    count: int,
    engine: AsyncEngine,
    sessions: async_sessionmaker[AsyncSession],
    processes: Processes,
    broker: Broker,
    amqp_url: str,
) -> None:
    """After SIGKILL at this point and a new relay, the effects are exactly the committed messages, each once."""
    await broker.queue("effects")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (id serial, message_id text NOT NULL, seq int)"))
    outbox = Outbox("chaos")
    messages = [
        Message(type="counted", body={"n": n}, routing_key="effects", ordering_key=str(n % 40) if n % 2 else None)
        for n in range(MESSAGES)
    ]
    doomed = await processes.relmsg("relay", RELMSG_FAILPOINTS=f"{point}=kill@{count}", **QUICK)
    for start in range(0, MESSAGES, MESSAGES // 3):
        async with sessions() as session, session.begin():
            await outbox.publish_many(session, messages[start : start + MESSAGES // 3])

        async def sent_or_killed() -> None:
            assert doomed.returncode is not None or await waiting(engine) == 0

        await eventually(sent_or_killed, within=40)
    assert await doomed.wait(within=40) == -9, doomed.stderr

    inbox, stop = Inbox("chaos", sessions, prefetch=200), asyncio.Event()
    effects(inbox)
    consuming = asyncio.create_task(inbox.run(amqp_url, stop))
    successor = await processes.relmsg("relay", **QUICK)
    await emptied(engine, within=40)

    async def all_handled() -> Counter[str]:
        async with engine.connect() as connection:
            found = Counter((await connection.execute(text("SELECT message_id FROM effect"))).scalars())
        assert len(found) >= MESSAGES
        assert await broker.count("effects") == 0
        return found

    handled = await eventually(all_handled, within=40)
    stop.set()
    await consuming
    assert handled == Counter(str(message.id) for message in messages)
    assert await successor.terminate() == 0
    assert await broker.count("effects.errors") == 0
