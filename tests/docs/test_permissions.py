"""The permissions of docs/operations.md are enough for half messages, each process under a login of its own."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from compose.local import Services
from relmsg import HalfMessage, HalfProducer, HalfState, Message, Resolution
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Processes

PAGE = Path(__file__).resolve().parents[2] / "docs/operations.md"
ROLES = ("publisher", "relay", "consumer", "operator")


@pytest.fixture
async def roles(engine: AsyncEngine, database_url: str) -> AsyncIterator[dict[str, str]]:
    """The roles of the page with the grants of the page, and nothing else; URLs by their names."""
    mark = secrets.token_hex(4)
    (grants,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    grants = re.sub("--.*", "", grants)
    grants = re.sub(rf"\b({'|'.join(ROLES)})\b(?=[,;])", rf"\1_{mark}", grants)
    named = {role: f"{role}_{mark}" for role in ROLES}
    async with engine.begin() as connection:
        for name in named.values():
            await connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'"))
        for grant in filter(str.strip, grants.split(";")):
            await connection.execute(text(grant))
    url = make_url(database_url)
    yield {
        role: url.set(username=name, password="secret").render_as_string(hide_password=False)
        for role, name in named.items()
    }
    async with engine.begin() as connection:
        for name in named.values():
            await connection.execute(text(f"DROP OWNED BY {name}"))
            await connection.execute(text(f"DROP ROLE {name}"))


@pytest.fixture
async def logins(services: Services, amqp_url: str) -> AsyncIterator[dict[str, str]]:
    """A login for the relay and one for the producer, with the permissions of the page; URLs by their names."""
    vhost, mark = urlsplit(amqp_url).path[1:], secrets.token_hex(4)
    rows = {
        row.split(" | ")[0].removeprefix("| "): re.findall(r"`(\^.*?\$)`", row)
        for row in PAGE.read_text().replace(r"\|", "\0").splitlines()
    }
    found = {"relay": rows["relay"], "producer": rows["producer of half messages"]}
    found["relay"][1] += "|^receipts$"  # the exchange it publishes to
    for name, patterns in found.items():
        allowed = [pattern.replace("\0", "|") for pattern in patterns]
        await asyncio.to_thread(services.rabbitmqctl, "add_user", f"{name}-{mark}", "secret")
        await asyncio.to_thread(services.rabbitmqctl, "set_permissions", "-p", vhost, f"{name}-{mark}", *allowed)
    parts = urlsplit(amqp_url)
    yield {
        name: parts._replace(netloc=f"{name}-{mark}:secret@{parts.netloc.rpartition('@')[2]}").geturl()
        for name in found
    }
    for name in found:
        await asyncio.to_thread(services.rabbitmqctl, "delete_user", f"{name}-{mark}")


async def test_the_permissions_of_the_page_are_enough_for_half_messages(
    roles: dict[str, str], logins: dict[str, str], processes: Processes, broker: Broker
) -> None:
    """Prepare, commit, check-back, and what an operator does, by logins that may do what the page says and no more."""
    await broker.exchange("receipts", "fanout")
    await broker.queue("inbox", exchange="receipts")
    relay = await processes.relmsg(
        "relay", RELMSG_PROBES="", RELMSG_DATABASE_URL=roles["relay"], RELMSG_AMQP_URL=logins["relay"]
    )
    await relay.line("^relaying")

    async def half_verb(*arguments: object) -> str:
        process = await processes.relmsg("half", *map(str, arguments), RELMSG_DATABASE_URL=roles["operator"])
        assert await process.wait() == 0, process.stderr
        return process.stdout

    async def arrived(count: int) -> None:
        assert await broker.count("inbox") == count

    async with HalfProducer(logins["producer"], group="payments") as half:

        @half.checker("done")
        async def done(_: HalfMessage) -> Resolution:
            return Resolution.COMMIT

        async with half.begin(Message(type="done", exchange="receipts")) as committed:
            pass
        assert committed.state is HalfState.COMMITTED
        with pytest.raises(RuntimeError):
            async with half.begin(Message(type="done", exchange="receipts"), check_after=0.1):
                raise RuntimeError
        await eventually(lambda: arrived(2), within=30)
        with pytest.raises(RuntimeError):
            async with half.begin(Message(type="not yet", exchange="receipts"), check_after=60) as left:
                raise RuntimeError

    async def kept() -> None:
        assert str(left.half_id) in await half_verb("list")

    await eventually(kept, within=30, every=0.5)
    assert "not yet" in await half_verb("show", left.half_id)
    await half_verb("resume", "--all")
    assert "is now COMMITTED" in await half_verb("commit", left.half_id)
    await eventually(lambda: arrived(3), within=30)
    assert await relay.terminate() == 0
