"""`relmsg errors` on queues into which somebody has put what no consumer of ours would write."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.broker.error_entry import ErrorFilter
from relmsg.broker.error_queue import ErrorQueue
from relmsg.topology import Queue, Topology
from tests.support.broker import Broker
from tests.support.processes import Processes
from tests.support.raw_amqp import RawPublisher, nested, properties, table

SOURCE, ERRORS = "billing.orders", "billing.orders.errors"
ALL = ErrorFilter()


@pytest.fixture
async def errors(amqp_url: str) -> AsyncIterator[ErrorQueue]:
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue(SOURCE),)))
        yield await ErrorQueue.of(connection, SOURCE)


@pytest.fixture
async def raw(amqp_url: str) -> AsyncIterator[RawPublisher]:
    async with RawPublisher(amqp_url) as publisher:
        yield publisher


def text(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


ODD_VALUES = {
    "a number": b"l" + struct.pack(">q", -5),
    "true": b"t\x01",
    "nothing": b"V",
    "a table": b"F" + table((b"a", b"t\x01")),
    "an array": b"A" + struct.pack(">I", 2) + b"VV",
    "bytes": b"x" + struct.pack(">I", 3) + b"\xff\x00\x1b",
    "not UTF-8": text(b"\xff" * 300),
    "a time": b"T" + struct.pack(">Q", 2**64 - 1),
    "a decimal": b"D" + struct.pack(">Bi", 255, -(2**31)),
    "a float": b"d" + struct.pack(">d", 1e308),
    "60 kB": text(b"x" * 60_000),
    "31 levels": nested(31),
    "480 levels": nested(480),
}
FIELDS = (
    b"relmsg-error-reason", b"relmsg-error-type", b"relmsg-error-attempts", b"relmsg-failed-at", b"relmsg-consumer",
    b"relmsg-original-queue", b"relmsg-original-expiration", b"relmsg-original-user-id", b"relmsg-sanitised-headers",
    b"relmsg-body-size", b"x-exception-message", b"x-exception-stacktrace", b"x-original-exchange",
    b"x-original-routingKey", b"x-first-death-queue", b"x-first-death-reason",
)  # fmt: skip


@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
async def test_every_field_of_an_error_queue_may_be_of_any_type(
    errors: ErrorQueue, raw: RawPublisher, broker: Broker, value: bytes
) -> None:
    """Whatever stands in a header of the diagnosis, the message is listed, filtered and requeued or kept, and so is
    its neighbour."""
    small = [name for name in FIELDS if len(value) * len(FIELDS) < 100_000 or name == b"x-exception-message"]
    assert await raw.publish(ERRORS, properties(message_id=b"odd", headers=table(*((name, value) for name in small))))
    await broker.publish(b"{}", routing_key=ERRORS, message_id="good", headers={"relmsg-error-reason": "no"})
    assert [each.message_id for each in await errors.browse(ALL)] == ["odd", "good"]
    wanted = ErrorFilter(exception="ValueError", since=datetime(2020, 1, 1, tzinfo=UTC))
    assert await errors.browse(wanted) == []
    stayed = await errors.requeue(ALL, any_origin=True, lossy=True)
    moved = {each.message_id for each in await broker.drain(SOURCE)}
    assert moved | {each.entry.message_id for each in stayed} == {"odd", "good"}
    assert "good" in moved


UNREADABLE = {
    "short strings that are not UTF-8": properties(message_id=b"\xff" * 200, type=b"\xfe" * 100, app_id=b"\xff"),
    "headers 480 levels deep": properties(message_id=b"odd", headers=table((b"h", nested(480)))),
    "a name that is not UTF-8": properties(message_id=b"odd", headers=table((b"\xff\xfe", b"t\x01"))),
    "a time beyond all years": properties(message_id=b"odd", timestamp=struct.pack(">Q", 2**63)),
}


@pytest.mark.parametrize("told", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_message_that_cannot_be_read_whole_is_listed_and_said_so(
    errors: ErrorQueue, raw: RawPublisher, broker: Broker, told: bytes
) -> None:
    """An entry tells what could not be read of it; it is requeued only where losing that is allowed, or purged."""
    assert await raw.publish(ERRORS, told)
    await broker.publish(b"{}", routing_key=ERRORS, message_id="good")
    odd, good = await errors.browse(ALL)
    assert odd.altered
    assert (good.message_id, good.altered) == ("good", ())
    (stayed,) = await errors.requeue(ALL)
    assert "--lossy" in stayed.reason
    assert [each.message_id for each in await broker.drain(SOURCE)] == ["good"]
    assert await errors.requeue(ALL, lossy=True) == []
    assert len(await broker.drain(SOURCE)) == 1
    assert await broker.count(ERRORS) == 0


DATES = ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "", "2026-13-45", "tomorrow", "9" * 5000)


async def test_no_date_in_a_header_keeps_the_others_from_being_found(errors: ErrorQueue, broker: Broker) -> None:
    """A time at the edge of what Python knows, or none at all, is passed over by --since and --until."""
    for date in DATES:
        await broker.publish(b"", routing_key=ERRORS, message_id="odd", headers={"relmsg-failed-at": date})
    headers = {"relmsg-failed-at": "2026-01-31T12:00:00+00:00"}
    await broker.publish(b"", routing_key=ERRORS, message_id="good", headers=headers)
    for wanted in (
        ErrorFilter(since=datetime(2026, 1, 1, tzinfo=UTC)),
        ErrorFilter(until=datetime(2026, 12, 31, tzinfo=UTC)),
    ):
        assert "good" in {each.message_id for each in await errors.browse(wanted)}


async def command(processes: Processes, *arguments: str) -> tuple[int, str, str]:
    process = await processes.relmsg("errors", *arguments)
    return await process.wait(within=60), process.stdout, process.stderr


BODIES = {
    "brackets": b"[" * 100_000,
    "closed": b"[" * 900 + b"]" * 900,
    "objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "digits": b"1" * 5000,
    "surrogate": b'"\\ud800"',
}


async def test_no_body_keeps_the_tools_from_showing_it(
    errors: ErrorQueue, processes: Processes, broker: Broker
) -> None:
    """Bodies that say they are JSON and cannot be printed as such are shown as text; a list does not read bodies."""
    for name, body in BODIES.items():
        headers: dict[str, Any] = {"relmsg-failed-at": "0001-01-01T00:00:00+23:59"}
        await broker.publish(
            body, routing_key=ERRORS, message_id=name, content_type="application/json", headers=headers
        )
    code, output, problems = await command(processes, "list", "--queue", SOURCE, "--json")
    assert (code, problems) == (0, "")
    assert {each["message_id"]: each["size"] for each in json.loads(output)} == {
        name: len(body) for name, body in BODIES.items()
    }
    for name, body in BODIES.items():
        code, output, problems = await command(processes, "show", name, "--queue", SOURCE, "--json")
        assert (code, problems) == (0, "")
        (row,) = json.loads(output)
        if row["body_encoding"] == "text":
            assert row["body"].encode() == body
    code, output, problems = await command(processes, "show", "brackets", "--queue", SOURCE)
    assert (code, problems) == (0, "")
    code, _, problems = await command(processes, "list", "--queue", SOURCE, "--since", "999999d")
    assert code == 2
    assert "Traceback" not in problems
