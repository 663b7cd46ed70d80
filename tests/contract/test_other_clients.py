"""Clients of other languages read what relmsg sends, and relmsg what they send, whatever stands in the headers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from compose.services.clients import Client, find_amqplib, find_bunny
from relmsg import Inbox, Message, Publisher, Retry
from relmsg.broker.connection import Connection
from relmsg.broker.error_entry import ErrorFilter
from relmsg.broker.error_queue import ErrorQueue
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, running

PROGRAMS = Path(__file__).parent / "clients"
CLIENTS: dict[str, tuple[str, Callable[[Callable[[str], None]], Client]]] = {
    "ruby": ("bunny.rb", find_bunny),
    "node": ("amqplib.js", find_amqplib),
}
HEADERS: dict[str, Any] = {
    **{f"n{number}": number for number in (0, 1, -1, 7, 127, 128, -129, 255, 256, 32_767, 40_000, -40_000, 65_535)},
    **{f"n{number}": number for number in (65_536, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, -(2**40))},
    "yes": True,
    "no": False,
    "none": None,
    "text": "žluť",
    "empty": "",
    "list": [1, 200, "a", [True, 40_000], {"deep": 3_000_000_000}],
    "table": {"inner": {"n": 300}},
}
SENT = {
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "yes": True,
    "no": False,
    "none": None,
    "text": "žluť",
    "float": 0.1,
    "time": datetime(2026, 1, 1, tzinfo=UTC),
    "list": [1, "a", {"b": 2}],
    "table": {"inner": {"n": 300}},
}
SENT_BY_NODE = {
    "byte": -1,
    "short": -300,
    "int": 70_000,
    "long": 5,
    "single": 0.5,
    "decimal": Decimal("9.95"),
    "bytes": bytearray(b"\0\xff"),
}


class OtherClient:
    """A program that uses the AMQP client of another language."""

    def __init__(self, language: str, url: str) -> None:
        self.language = language
        program, find = CLIENTS[language]
        self._client = find(lambda step: print(f"local: {step}", file=sys.stderr))
        self._program = PROGRAMS / program
        self._url = url

    async def take(self, queue: str, count: int) -> list[dict[str, Any]]:
        """The next messages of a queue, as the client shows them."""
        return [json.loads(line) for line in (await self._run("take", queue, str(count))).splitlines()]

    async def put(self, queue: str) -> None:
        """Send one message with headers of every kind this client has."""
        await self._run("put", queue)

    async def _run(self, verb: str, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            self._client.interpreter, str(self._program), verb, self._url, *arguments,
            env=os.environ | self._client.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                out, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, f"{self.language} gave up: {errors.decode()[-2000:]}"
        return out.decode()


@pytest.fixture(params=[*CLIENTS])
async def other(request: pytest.FixtureRequest, amqp_url: str) -> OtherClient:
    """Each of the other clients, installed where it is missing."""
    return await asyncio.to_thread(OtherClient, request.param, amqp_url)


async def test_other_clients_read_every_header(other, amqp_url, broker):
    """F1: whatever the size of an integer, no header that relmsg sends ends the connection of another client."""
    await broker.queue(QUEUE)
    async with Publisher(amqp_url) as publisher:
        await publisher.publish(Message(type="t", body={"a": 1}, routing_key=QUEUE, headers=HEADERS, ordering_key="k"))
    (taken,) = await other.take(QUEUE, 1)
    assert taken["headers"] == {**HEADERS, "relmsg-key": "k"}
    assert json.loads(taken["body"]) == {"a": 1}


async def test_relmsg_reads_and_gives_back_every_header_of_other_clients(other, amqp_url, broker, sessions):
    """F1: a message of another client is handled; its error copy and what requeue makes of it can be read by it."""
    await broker.queue(QUEUE)
    await other.put(QUEUE)
    inbox, seen = Inbox("billing", sessions), list[Message]()

    @inbox.handler("t", queue=QUEUE, retry=Retry(attempts=1))
    async def refuse(message: Message) -> None:
        seen.append(message)
        raise RuntimeError("refused")

    async with running(inbox, amqp_url):
        await eventually(lambda: holds_one(broker, f"{QUEUE}.errors"))
    expected = SENT | (SENT_BY_NODE if other.language == "node" else {})
    assert {name: seen[0].headers[name] for name in expected} == expected
    assert seen[0].timestamp == datetime(2026, 1, 1, tzinfo=UTC)

    async with Connection([amqp_url]) as connection:
        assert await (await ErrorQueue.of(connection, QUEUE)).requeue(ErrorFilter()) == []
    (again,) = await other.take(QUEUE, 1)
    await other.put(QUEUE)
    (first,) = await other.take(QUEUE, 1)
    assert again == first


async def test_other_clients_read_the_error_queue(other, amqp_url, broker, sessions):
    """F1: the diagnosis has integers too, and another client reads it."""
    await broker.queue(QUEUE)
    inbox = Inbox("billing", sessions)

    @inbox.handler("t", queue=QUEUE, retry=Retry(attempts=1))
    async def refuse(message: Message) -> None:
        raise RuntimeError("refused")

    async with running(inbox, amqp_url), Publisher(amqp_url) as publisher:
        await publisher.publish(Message(type="t", routing_key=QUEUE, headers=HEADERS))
        await eventually(lambda: holds_one(broker, f"{QUEUE}.errors"))
    (taken,) = await other.take(f"{QUEUE}.errors", 1)
    assert {name: taken["headers"][name] for name in HEADERS} == HEADERS
    assert taken["headers"]["relmsg-error-attempts"] == 1


async def holds_one(broker: Broker, queue: str) -> None:
    assert await broker.count(queue) == 1
