"""What PostgreSQL may answer to a coordinator: its statements tell all that can pass as one error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.broker.envelope import seal
from relmsg.database import create_engine
from relmsg.db.failures import KINDS, FailureKind
from relmsg.errors import DatabaseAway
from relmsg.half.half import half_of
from relmsg.half.state import Resolution
from relmsg.half.store import HalfStore
from relmsg.message import Message
from tests.support.faults import CODES, faults

Call = Callable[[HalfStore, UUID], Awaitable[object]]


async def prepare(store: HalfStore, half_id: UUID) -> object:
    message = Message(id=half_id, type="t", body="x", routing_key="q")
    return await store.prepare(half_of(seal(message, source="s", max_body_bytes=1000), "g", user_id=None))


async def decide(store: HalfStore, half_id: UUID) -> object:
    return await store.decide(half_id, Resolution.COMMIT, group="g", user_id=None, by="test")


CALLS: dict[str, Call] = {
    "prepare": prepare,
    "decide": decide,
    "due": lambda store, _: store.due(10),
    "figures": lambda store, _: store.figures(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_whatever_a_statement_of_the_coordinator_meets_is_waited_for(
    name: str, engine: AsyncEngine, database_url: str
) -> None:
    """Fifty codes one after another are DatabaseAway, for which the coordinator keeps the delivery and tries again.

    Those that say that another transaction was in the way are not told: the statement is sent again.
    """
    async with faults(engine, database_url) as database:
        own = create_engine(database.url)
        store, half_id = HalfStore(own, check_after=timedelta(0)), uuid4()
        if name != "prepare":
            await prepare(store, half_id)
        await database.arm("%half_message%")
        for _ in [code for code in CODES if KINDS.get(code, KINDS[code[:2]]) is not FailureKind.CONTENTION]:
            with pytest.raises(DatabaseAway):
                await CALLS[name](store, half_id)
        await CALLS[name](store, half_id)
        await database.arm("%half_message%", ["23514"])
        refusal = DBAPIError if name in ("prepare", "decide") else DatabaseAway
        with pytest.raises(refusal):
            await CALLS[name](store, uuid4() if name == "prepare" else half_id)
        await own.dispose()
