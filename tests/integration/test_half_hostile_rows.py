"""Check-back among rows that somebody has written by plain SQL, and among faults of one check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg import HalfMessage, HalfProducer, HalfState, Resolution
from relmsg.half import member
from relmsg.half.coordinator import Coordinator
from relmsg.half.half import Half
from relmsg.half.sender import Sender
from relmsg.testing import eventually
from tests.support.halves import becomes, coordinating, half_row

GROUP = "shop"
BAD, GOOD = "bad", "good"

ROWS = {
    "headers 3000 deep": {"headers": "(repeat('[', 3000) || repeat(']', 3000))::jsonb"},
    "headers that are no object": {"headers": "'[1]'::jsonb"},
    "huge numbers": {"headers": "'{\"a\": 1e6000}'::jsonb"},
    "16 MB of headers": {"headers": "jsonb_build_object('a', repeat('x', 16000000))"},
    "BC": {"occurred_at": "'4713-01-01 00:00:00+00 BC'", "prepared_at": "'4713-01-01 00:00:00+00 BC'"},
    "before all time": {"occurred_at": "'-infinity'", "prepared_at": "'-infinity'", "next_check_at": "'-infinity'"},
    "after all time": {"occurred_at": "'infinity'", "prepared_at": "'infinity'"},
    "long spans": {"expires_in": "'178000000 years'", "check_every": "'178000000 years'"},
    "negative spans": {"expires_in": "'-178000000 years'", "check_every": "'-178000000 years'"},
    "the greatest numbers": {"check_sent": "2147483647", "max_checks": "2147483647"},
    "the least numbers": {"check_sent": "-2147483648", "check_received": "-2147483648"},
    "a group with no name": {"producer_group": "''"},
    "a group whose name no queue can have": {"producer_group": "repeat('x', 300)"},
    "a routing key that AMQP cannot carry": {"routing_key": "repeat('x', 300)"},
    "controls": {"type": r"E'a\u0007\u001b]0;root\u009b'", "routing_key": r"E'\u202e\n'"},
}


async def due(engine: AsyncEngine, row_id: UUID, type_: str, odd: dict[str, str]) -> UUID:
    """A half message that nobody has decided and whose check is due, the odd one first."""
    row = {
        "half_id": f"'{row_id}'",
        "producer_group": f"'{GROUP}'",
        "state": "'PREPARED'",
        "type": f"'{type_}'",
        "routing_key": "'q'",
        "prepared_at": "now()",
        "check_every": "'1 second'",
        "next_check_at": f"now() - interval '{1000 - row_id.int} seconds'",
    } | odd
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"INSERT INTO relmsg.half_message ({', '.join(row)}) VALUES ({', '.join(row.values())})"
        )
    return row_id


async def commits(_: HalfMessage) -> Resolution:
    return Resolution.COMMIT


@pytest.mark.parametrize("odd", ROWS.values(), ids=ROWS)
async def test_no_row_keeps_the_others_from_being_checked(
    odd: dict[str, str], engine: AsyncEngine, database_url: str, amqp_url: str
) -> None:
    """Beside a row that no producer could have made the others are checked and decided, and the coordinator is well."""
    await due(engine, UUID(int=1), BAD, odd)
    good = await due(engine, UUID(int=2), GOOD, {})
    async with coordinating(database_url, amqp_url) as coordinator, HalfProducer(amqp_url, group=GROUP) as half:
        half.checker(GOOD)(commits)
        await becomes(engine, good, HalfState.COMMITTED, within=60)
        await measured(coordinator)
        assert (coordinator.live(), coordinator.ready()) == (None, None)


async def measured(coordinator: Coordinator) -> None:
    """The figures of the table were read."""

    async def check() -> None:
        assert coordinator.metrics.registry.get_sample_value("relmsg_half_open") is not None

    await eventually(check)


FAULTS = {
    "RecursionError": RecursionError("maximum recursion depth exceeded"),
    "MemoryError": MemoryError(),
    "UnicodeError": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"),
}
READ_HALF, SAY, CHECK = member.read_half, Sender.say, Half.check


@pytest.mark.parametrize("stage", ["reading", "answering"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_over_one_check_is_counted_and_stops_no_other(
    stage: str, fault: Exception, engine: AsyncEngine, database_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that fails over a check goes on with the others, and its metrics tell of it."""
    bad = await due(engine, UUID(int=1), BAD, {})
    good = await due(engine, UUID(int=2), GOOD, {})

    def read(message: Any, *given: Any, **named: Any) -> Any:
        if message.type == BAD:
            raise fault
        return READ_HALF(message, *given, **named)

    def say(self: Sender, verb: Any, half_id: UUID, *given: Any) -> Awaitable[Any]:
        if half_id == bad:
            raise fault
        return SAY(self, verb, half_id, *given)

    if stage == "reading":
        monkeypatch.setattr(member, "read_half", read)
    else:
        monkeypatch.setattr(Sender, "say", say)
    async with coordinating(database_url, amqp_url), HalfProducer(amqp_url, group=GROUP) as half:
        half.checker("*")(commits)
        await becomes(engine, good, HalfState.COMMITTED, within=60)
        assert half.is_checking

        async def counted() -> None:
            assert failures(half, "internal_error") >= 1

        await eventually(counted)
    assert failures(half, "checker_failed") == 0
    row = await half_row(engine, bad)
    assert row is not None
    assert row.state == HalfState.PREPARED


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_over_one_row_is_counted_and_ends_no_coordinator(
    fault: Exception, engine: AsyncEngine, database_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that fails to make the check of one row sends those of the others, and its metrics tell of it."""
    bad = await due(engine, UUID(int=1), BAD, {})
    good = await due(engine, UUID(int=2), GOOD, {})

    def check(self: Half, number: int) -> Any:
        if self.half_id == bad:
            raise fault
        return CHECK(self, number)

    monkeypatch.setattr(Half, "check", check)
    async with coordinating(database_url, amqp_url) as coordinator, HalfProducer(amqp_url, group=GROUP) as half:
        half.checker("*")(commits)
        await becomes(engine, good, HalfState.COMMITTED, within=60)
        assert (coordinator.live(), coordinator.ready()) == (None, None)
        assert (coordinator.metrics.registry.get_sample_value("relmsg_half_internal_errors_total") or 0) >= 1


CHECKERS: dict[str, Callable[[HalfMessage], Awaitable[Any]]] = {}


def failing(function: Callable[[HalfMessage], Awaitable[Any]]) -> Callable[[HalfMessage], Awaitable[Any]]:
    CHECKERS[function.__name__] = function
    return function


@failing
async def raises(_: HalfMessage) -> Resolution:
    raise RecursionError("odd")


@failing
async def returns_nothing(_: HalfMessage) -> None:
    return None


@pytest.mark.parametrize("checker", CHECKERS.values(), ids=CHECKERS)
async def test_a_checker_that_fails_is_counted(
    checker: Any, engine: AsyncEngine, database_url: str, amqp_url: str
) -> None:
    """What a checker raises, and what it returns instead of a Resolution, is counted as its failure."""
    await due(engine, UUID(int=1), BAD, {})
    async with coordinating(database_url, amqp_url), HalfProducer(amqp_url, group=GROUP) as half:
        half.checker("*")(checker)

        async def counted() -> None:
            assert failures(half, "checker_failed") >= 1

        await eventually(counted, within=60)
    assert failures(half, "internal_error") == 0


def failures(half: HalfProducer, reason: str) -> float:
    return half.metrics.registry.get_sample_value("relmsg_half_checker_failures_total", {"reason": reason}) or 0.0
