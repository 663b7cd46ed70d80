"""What PostgreSQL may answer to a running consumer: it pauses, and each message takes effect once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Inbox, Message
from relmsg.db.failures import KINDS, THEIRS
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, counted, create_effect, effect, effects, place, running, settled
from tests.support.faults import CODES, Faults, faults

Sessions = async_sessionmaker[AsyncSession]


@dataclass(frozen=True)
class Case:
    """A statement, by words that no other one has, and how the consumer is brought to send it."""

    pattern: str
    kind: str = "single"
    redelivered: bool = False
    fails_once: bool = False
    started: bool = False
    messages: int = 6
    divided: bool = False
    """Whether a refusal is taken for one row's, which ends the round (test_inbox_refused_rows.py)."""


CASES = {
    "inbox row": Case("%INSERT INTO%inbox_message%"),
    "inbox rows of a group": Case("%INSERT INTO%inbox_message%", kind="group"),
    "inbox rows of a list": Case("%INSERT INTO%inbox_message%", kind="list"),
    "starts": Case("SELECT%inbox_attempt%", redelivered=True, started=True),
    "start": Case("INSERT INTO%inbox_attempt%", redelivered=True),
    "end of the starts": Case("DELETE FROM%inbox_attempt%", redelivered=True),
    # Tried once a message: it needs one for each code, and one that passes.
    "start taken back": Case("%inbox_attempt%starts%<=%", redelivered=True, fails_once=True, messages=len(CODES) + 5),
    "window": Case("%INSERT INTO%inbox_window%keeps%"),
    "look at the window": Case("SELECT keeps%"),
    "forgotten messages": Case("%DELETE FROM%inbox_message%", divided=True),
    "pruned": Case("%INSERT INTO%inbox_window%pruned_at%"),
}


class Hurried:
    """The machine's clock, on which nobody sleeps for longer than ten milliseconds."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


@pytest.fixture
async def database(engine: AsyncEngine, database_url: str) -> AsyncIterator[Faults]:
    await create_effect(engine)
    async with faults(engine, database_url) as made:
        for table in ("relmsg.inbox_message", "relmsg.inbox_attempt", "relmsg.inbox_window", "effect"):
            await made.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {made.role}")
        yield made


async def redeliver(broker: Broker, count: int) -> None:
    """Have the messages of the queue delivered, and given back."""
    async with broker.channel() as channel:
        for _ in range(count):
            await channel.basic_get(QUEUE)


@pytest.mark.parametrize("name", CASES)
async def test_whatever_a_statement_of_the_consumer_meets_costs_no_message(
    name: str, database: Faults, engine: AsyncEngine, sessions: Sessions, amqp_url: str, broker: Broker
) -> None:
    """All codes one after another, each raised inside this statement: every message takes effect once, none spends
    the one attempt that it has, and the consumer stays live."""
    case, failed = CASES[name], set[str]()
    ids = [str(uuid4()) for _ in range(case.messages)]
    await broker.queue(QUEUE)
    await place(broker, *ids)
    if case.redelivered:
        await redeliver(broker, len(ids))
    async with engine.begin() as connection:  # what a pruner finds
        await connection.execute(
            text(
                "INSERT INTO relmsg.inbox_message (consumer, source, message_id, handled_at)"
                " VALUES ('billing', '', 'old', now() - interval '90 days')"
            )
        )
        if case.started:
            await connection.execute(
                text(
                    "INSERT INTO relmsg.inbox_attempt (consumer, source, message_id)"
                    " SELECT 'billing', '', unnest(CAST(:ids AS text[]))"
                ),
                {"ids": ids},
            )
    users = create_async_engine(database.url)
    inbox = Inbox("billing", async_sessionmaker(users), concurrency=1, clock=Hurried(), chance=lambda: 0.0)
    if case.kind == "list":

        @inbox.handler("order.placed", queue=QUEUE, retry=1)
        async def all_of_them(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await effect(session, message)
    else:

        @inbox.handler(
            "order.placed",
            queue=QUEUE,
            retry=2 if case.fails_once else 1,
            group=1 if case.kind == "single" else None,
        )
        async def one(message: Message, session: AsyncSession) -> None:
            if case.fails_once and str(message.id) not in failed:
                failed.add(str(message.id))
                raise ValueError
            await effect(session, message)

    waited = [code for code in CODES if KINDS.get(code, KINDS[code[:2]]) is not THEIRS]
    await database.arm(case.pattern, waited if case.divided else CODES)
    try:
        async with running(inbox, amqp_url):
            await database.spent()
            await settled(inbox, handled=len(ids))
            assert inbox.live() is None
            assert inbox.ready() is None
            assert counted(inbox, "failed") == 0
    finally:
        await users.dispose()
    assert sorted(await effects(sessions)) == sorted(ids)
