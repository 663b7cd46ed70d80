"""SIGKILL of the coordinator at every failpoint: every half message ends once, as its producer meant it."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg import HalfMessage, HalfProducer, Message, Resolution
from relmsg.failpoint import FAILPOINTS
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.halves import HALF
from tests.support.processes import Processes
from tests.support.relaying import emptied

POINTS = [name for name in FAILPOINTS if name.startswith("coordinator.")]
MESSAGES = 60
QUICK = {
    "RELMSG_PROBES": "",
    "RELMSG_LEASE": "2",
    "RELMSG_RENEW": "0.5",
    "RELMSG_HALF_CHECK_AFTER": "0.1",
    "RELMSG_HALF_CHECK_EVERY": "1",
    "RELMSG_HALF_CHECK_RATE": "5",
}


class Undecided(Exception):
    """The local work does not know how it ended."""


@pytest.mark.parametrize(
    ("point", "count"),
    [(point, count) for point in POINTS for count in ((1, 2) if point.endswith(("claim", "checks")) else (1, 40))],
)
async def test_every_half_message_ends_as_it_was_meant(
    point: str, count: int, engine: AsyncEngine, processes: Processes, broker: Broker, amqp_url: str
) -> None:
    """After SIGKILL at this point and a new coordinator: committed, rolled back and checked back ones end so, each
    commit has come into the outbox once, and nothing is left in the queue."""
    await broker.queue("effects")
    await _note_inserts(engine)
    fates: dict[UUID, Resolution] = {}
    async with HalfProducer(amqp_url, group="shop", answer_within=0.1) as half:

        @half.checker("counted")
        async def check(half_message: HalfMessage) -> Resolution:
            return fates[half_message.id]

        doomed = await processes.relmsg("relay", RELMSG_FAILPOINTS=f"{point}=kill@{count}", **QUICK)
        await doomed.line("coordinating")
        for number in range(MESSAGES):
            message = Message(type="counted", routing_key="effects")
            fates[UUID(str(message.id))] = Resolution.COMMIT if number % 2 else Resolution.ROLLBACK
            await _end(half, message, fates[UUID(str(message.id))], by_check=number % 3 == 0)
        assert await doomed.wait(within=40) == -9, doomed.stderr
        successor = await processes.relmsg("relay", **QUICK)

        async def all_decided() -> None:
            async with engine.connect() as connection:
                states = dict((await connection.execute(select(HALF.c.half_id, HALF.c.state))).all())
            assert states == {
                half_id: "COMMITTED" if fate is Resolution.COMMIT else "ROLLED_BACK" for half_id, fate in fates.items()
            }

        await eventually(all_decided, within=60)
    await emptied(engine)
    committed = [str(half_id) for half_id, fate in fates.items() if fate is Resolution.COMMIT]
    async with engine.connect() as connection:
        inserted = (await connection.execute(text("SELECT message_id::text FROM inserted"))).scalars().all()
    assert Counter(inserted) == Counter(committed)
    assert {each.message_id for each in await broker.drain("effects")} == set(committed)
    assert await successor.terminate() == 0
    assert await broker.count("relmsg.half") == 0
    assert await broker.count("relmsg.half.errors") == 0


async def _end(half: HalfProducer, message: Message, fate: Resolution, *, by_check: bool) -> None:
    try:
        async with half.begin(message) as tx:
            if by_check:
                raise Undecided
            if fate is Resolution.ROLLBACK:
                await tx.rollback()
    except Undecided:
        pass


async def _note_inserts(engine: AsyncEngine) -> None:
    """The relay deletes what is sent: a trigger remembers each row that was ever in the outbox."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE inserted (message_id uuid)"))
        await connection.execute(
            text(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN INSERT INTO public.inserted VALUES (NEW.message_id); RETURN NEW; END $$"
            )
        )
        await connection.execute(
            text(
                "CREATE TRIGGER note AFTER INSERT ON relmsg.outbox_message FOR EACH ROW EXECUTE FUNCTION public.note()"
            )
        )
