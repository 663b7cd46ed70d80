"""Relay, consumer, publisher, producer of half messages and operator work under the logins of docs/secure.md."""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from compose.local import Services
from relmsg import HalfProducer, Message, Outbox
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Processes

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROLES = ("publisher", "relay", "consumer", "operator")
LOGINS = ("relay", "consumer", "producer", "operator")
INBOX = """
import os
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from relmsg import Inbox, Message, Retry

inbox = Inbox("billing", async_sessionmaker(create_async_engine(os.environ["RELMSG_DATABASE_URL"])))

@inbox.handler("order.placed", queue="billing.orders", retry=Retry(attempts=1))
async def charge(message: Message, session: AsyncSession) -> None:
    if message.body == b"bad":
        raise ValueError("no such order")
    await session.execute(text("INSERT INTO public.charge VALUES (:id)"), {"id": str(message.id)})
"""


def sql(page: str) -> str:
    """The SQL blocks of a page, without comments."""
    return re.sub("--.*", "", "".join(re.findall(r"```sql\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)))


@pytest.fixture
async def roles(engine: AsyncEngine, database_url: str) -> AsyncIterator[dict[str, str]]:
    """The roles of the pages, under names of this test's own; URLs by the page's names."""
    mark = secrets.token_hex(4)
    statements = re.sub(rf"\b({'|'.join(ROLES)})\b(?=[,; ])", rf"\1_{mark}", sql("secure.md") + sql("operations.md"))
    async with engine.begin() as connection:
        for statement in filter(str.strip, statements.split(";")):
            await connection.execute(text(statement))
        for role in ROLES:
            await connection.execute(text(f"ALTER ROLE {role}_{mark} PASSWORD 'secret'"))
        await connection.execute(text("CREATE TABLE public.charge (id text)"))
        await connection.execute(text(f"GRANT INSERT ON public.charge TO consumer_{mark}"))
    url = make_url(database_url)
    yield {
        role: url.set(username=f"{role}_{mark}", password="secret").render_as_string(hide_password=False)
        for role in ROLES
    }
    async with engine.begin() as connection:
        for role in ROLES:
            await connection.execute(text(f"DROP OWNED BY {role}_{mark}"))
            await connection.execute(text(f"DROP ROLE {role}_{mark}"))


@pytest.fixture
async def logins(services: Services, amqp_url: str) -> AsyncIterator[dict[str, str]]:
    """The logins that the page's commands make, under names of this test's own; URLs by the page's names."""
    parts, mark = urlsplit(amqp_url), secrets.token_hex(4)
    commands = re.findall(r"(?m)^rabbitmqctl (.*)$", (DOCS / "secure.md").read_text())
    renamed = {name: f"{name}-{mark}" for name in LOGINS} | {"shop": parts.path[1:], "PASSWORD": "secret"}
    for command in commands:
        arguments = [renamed.get(word, word) for word in shlex.split(command)]
        await asyncio.to_thread(services.rabbitmqctl, *arguments)
    yield {
        name: parts._replace(netloc=f"{name}-{mark}:secret@{parts.netloc.rpartition('@')[2]}").geturl()
        for name in LOGINS
    }
    for name in LOGINS:
        await asyncio.to_thread(services.rabbitmqctl, "delete_user", f"{name}-{mark}")


async def test_everything_works_with_the_least_privileges_of_the_page(
    roles: dict[str, str],
    logins: dict[str, str],
    processes: Processes,
    broker: Broker,
    engine: AsyncEngine,
    tmp_path: Path,
) -> None:
    """A message is relayed and handled, a bad one is dead-lettered and sent again, and a half message commits."""
    await broker.exchange("shop", "fanout")
    await broker.queue("billing.orders", exchange="shop")
    (tmp_path / "billing.py").write_text(INBOX)
    common = {"RELMSG_PROBES": "", "PYTHONPATH": str(tmp_path)}

    def of(role: str, login: str) -> dict[str, str]:
        return common | {"RELMSG_DATABASE_URL": roles[role], "RELMSG_AMQP_URL": logins[login]}

    relay = await processes.relmsg("relay", **of("relay", "relay"))
    consumer = await processes.relmsg("consume", "billing:inbox", **of("consumer", "consumer"))
    await relay.line("^relaying", within=60)
    await consumer.line("^consuming", within=60)

    publishing = create_async_engine(roles["publisher"])
    async with async_sessionmaker(publishing).begin() as session:
        await Outbox("orders").publish_many(
            session, [Message(type="order.placed", exchange="shop", body=body) for body in (b"good", b"bad")]
        )
    await publishing.dispose()
    half_message = Message(type="order.placed", exchange="shop", body=b"good")
    async with HalfProducer(logins["producer"], group="payments") as half, half.begin(half_message):
        pass

    async def charged() -> None:
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM public.charge")) == 2
        assert await broker.count("billing.orders.errors") == 1

    await eventually(charged, within=60, every=0.2)

    for command in (
        "outbox status",
        "outbox list",
        "half list",
        "errors list --queue billing.orders.errors",
        "errors requeue --queue billing.orders.errors --yes",
    ):
        process = await processes.relmsg(*command.split(), **of("operator", "operator"))
        assert await process.wait(within=60) == 0, (command, process.stderr)
    await eventually(charged, within=60, every=0.2)  # it fails again
    assert await consumer.terminate(within=60) == 0
    assert await relay.terminate(within=60) == 0
    told = relay.stderr + consumer.stderr
    assert "refused" not in told
    assert "permission" not in told
