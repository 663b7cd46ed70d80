"""A real process and the words of a hostile row: what reaches its terminal is printable, and forges no line."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.processes import Process, Processes

FORGED = "2026-01-01 00:00:00,000 INFO    relmsg: all is well"
WORDS = f"nowhere\n{FORGED}\x1b]0;root\x07\u202e\x9b2J"


@pytest.fixture
async def _held(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO relmsg.outbox_message (exchange, routing_key, type, body) VALUES (:w, :w, :w, '')"),
            {"w": WORDS},
        )


async def ended(process: Process) -> list[str]:
    """Every line that the process has written."""
    await process.terminate()
    lines = [*process.stdout.split("\n"), *process.stderr.split("\n")]
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert not any(line.startswith(FORGED) for line in lines)
    return lines


@pytest.mark.usefixtures("_held")
async def test_a_relay_tells_of_a_hostile_exchange_on_one_line(processes: Processes) -> None:
    """The exchange that is missing is named, with its control characters escaped."""
    relay = await processes.relmsg("relay", RELMSG_PROBES="")
    await relay.line("nowhere.*waits")
    assert any("nowhere\\n2026" in line and "\\x1b]0;root" in line for line in await ended(relay))


@pytest.mark.usefixtures("_held")
async def test_a_relay_that_logs_json_tells_of_it_as_json(processes: Processes) -> None:
    """Each line is an object whose message holds what was sent, and is printable all the same."""
    relay = await processes.relmsg("relay", RELMSG_PROBES="", RELMSG_LOG_FORMAT="json")
    await relay.line("nowhere.*waits")
    lines = await ended(relay)
    told = [json.loads(line)["message"] for line in lines if line.startswith("{")]
    assert any(WORDS in message for message in told)


@pytest.mark.usefixtures("_held")
async def test_a_list_shows_a_hostile_row_on_one_line(processes: Processes) -> None:
    """`outbox list` has one line a row, and with `--json` a program reads what was sent."""
    listed = await processes.relmsg("outbox", "list")
    await listed.wait()
    assert len([line for line in await ended(listed) if line]) == 2
    listed = await processes.relmsg("outbox", "list", "--json")
    await listed.wait()
    (line,) = [line for line in await ended(listed) if line]
    assert json.loads(line)[0]["exchange"] == WORDS
