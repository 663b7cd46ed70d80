"""The example of half messages: a payment in a SQLite file, its process killed at the worst moments."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.half.protocol import COORDINATOR
from relmsg.schema import tables
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Process, Processes
from tests.support.relaying import waiting

EXAMPLE = ("-m", "examples.half_payment")
HALF = tables().half_message


class Payments:
    """The example's processes, its file, and what the coordinator knows of it."""

    def __init__(self, processes: Processes, engine: AsyncEngine, file: Path) -> None:
        self.file = file
        self._processes = processes
        self._engine = engine

    async def start(self, *verb: str, **variables: str) -> Process:
        return await self._processes.python_with_relmsg(*EXAMPLE, *verb, PAYMENTS=str(self.file), **variables)

    async def answering(self) -> Process:
        """A member of the group that does nothing but answer checks."""
        member = await self.start("answer")
        await member.line("^answering$")
        return member

    def recorded(self) -> list[tuple[int, int, str]]:
        """The payments in the file."""
        with closing(sqlite3.connect(self.file)) as store:
            return store.execute("SELECT id, cents, message FROM payment ORDER BY id").fetchall()

    async def decided(self) -> list[tuple[str, str | None]]:
        """How the half messages stand, and who decided."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(HALF.c.state, HALF.c.decided_by).order_by(HALF.c.created_at))
            return [(row.state, row.decided_by) for row in rows]

    async def reached(self, *expected: tuple[str, str | None]) -> None:
        """Wait until they stand so."""

        async def so() -> None:
            assert await self.decided() == list(expected)

        await eventually(so, within=30)


@pytest.fixture
async def payments(processes: Processes, broker: Broker, engine: AsyncEngine, tmp_path: Path) -> Payments:
    """The example's topology, a relay that coordinates, and an empty file."""
    declared = await processes.relmsg("topology", "declare", "examples.half_payment:topology")
    assert await declared.wait() == 0, declared.stderr
    await processes.relmsg("relay", RELMSG_PROBES="")

    async def coordinated() -> None:
        assert await broker.exists(COORDINATOR)

    await eventually(coordinated, within=20)
    return Payments(processes, engine, tmp_path / "payments.sqlite")


async def test_a_payment_is_recorded_and_told(payments: Payments, broker: Broker) -> None:
    """Undisturbed, `pay` itself commits; a payment that is recorded already is not told again."""
    member = await payments.answering()
    paying = await payments.start("pay", "7", "1250")
    assert await paying.wait() == 0, paying.stderr
    assert "payment 7 is recorded, its message is COMMITTED" in paying.stdout
    again = await payments.start("pay", "7", "1250")
    assert await again.wait() == 1
    assert "payment 7 is recorded already" in again.stderr
    await payments.reached(("COMMITTED", "producer payments"), ("ROLLED_BACK", "checker payments"))
    await received(broker, payments)
    assert await member.terminate() == 0


async def test_killed_after_the_local_commit_the_check_back_sends_the_message(
    payments: Payments, engine: AsyncEngine, broker: Broker
) -> None:
    """Between the commit in SQLite and the commit of the half message: the payment stands, and so will its message."""
    paying = await payments.start("pay", "7", "1250", RELMSG_FAILPOINTS="half.before_commit=kill")
    assert await paying.wait() == -9
    assert [row[:2] for row in payments.recorded()] == [(7, 1250)]
    assert await payments.decided() == [("PREPARED", None)]
    assert await waiting(engine) == 0
    member = await payments.answering()
    await payments.reached(("COMMITTED", "checker payments"))
    await received(broker, payments)
    assert await member.terminate() == 0


async def test_killed_before_the_local_work_the_check_back_rolls_back(
    payments: Payments, engine: AsyncEngine, broker: Broker
) -> None:
    """The half message is stored and nothing else has happened: no payment, so never a message."""
    paying = await payments.start("pay", "7", "1250", RELMSG_FAILPOINTS="half.after_prepare=kill")
    assert await paying.wait() == -9
    await rolled_back(payments, engine, broker)


async def test_killed_inside_the_local_transaction_the_check_back_rolls_back(
    payments: Payments, engine: AsyncEngine, broker: Broker
) -> None:
    """Another writer's lock keeps it from its local commit until it dies: what it may have begun never counts."""
    assert await (await payments.answering()).terminate() == 0  # has made the tables
    with closing(sqlite3.connect(payments.file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        paying = await payments.start("pay", "7", "1250")
        await payments.reached(("PREPARED", None))
        assert paying.returncode is None
        assert await paying.kill() == -9
        writer.execute("ROLLBACK")
    await rolled_back(payments, engine, broker)


async def received(broker: Broker, payments: Payments) -> None:
    """Wait for the message of payment 7, the only one: its id is the half id."""
    ((_, cents, half_id),) = payments.recorded()

    async def there() -> None:
        assert await broker.count("receipts") == 1

    await eventually(there, within=20)
    (message,) = await broker.drain("receipts")
    assert message.message_id == str(UUID(half_id))
    assert json.loads(message.body) == {"id": 7, "cents": cents}
    assert (message.properties.message_type, message.properties.app_id) == ("payment.received", "payments")


async def rolled_back(payments: Payments, engine: AsyncEngine, broker: Broker) -> None:
    """A member comes up and is asked; then there is neither a payment nor a message."""
    member = await payments.answering()
    await payments.reached(("ROLLED_BACK", "checker payments"))
    assert payments.recorded() == []
    assert await waiting(engine) == 0
    assert await broker.count("receipts") == 0
    assert await member.terminate() == 0
