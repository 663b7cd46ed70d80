"""Where relmsg's tables are is told once, by RELMSG_SCHEMA, and holds for all that use them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Hint, Inbox, Message, Outbox, migrate
from relmsg.errors import SettingsError
from relmsg.half.desk import Desk
from relmsg.outbox.backlog import Backlog
from relmsg.outbox.relay import Relay
from relmsg.settings import Settings, schema_in_force
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.databases import Databases
from tests.support.processes import Processes
from tests.support.running import running_inside

SCHEMA = "my messages"


async def test_a_message_goes_all_the_way_in_the_schema_of_the_environment(
    engine: AsyncEngine,
    sessions: async_sessionmaker[AsyncSession],
    broker: Broker,
    database_url: str,
    amqp_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Migration, outbox, hint, relay, inbox and operators all use the schema that RELMSG_SCHEMA names."""
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA relmsg CASCADE"))
    monkeypatch.setenv("RELMSG_SCHEMA", SCHEMA)
    await migrate.upgrade(database_url)
    assert await migrate.check(engine) == []
    await broker.queue("orders")
    handled: list[str] = []
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue="orders")
    async def handle(message: Message, session: AsyncSession) -> None:
        handled.append(str(message.id))

    async with Hint(engine) as hint:
        outbox = Outbox("orders", wake=hint)
        message = Message(type="order.placed", body={}, routing_key="orders")
        async with sessions.begin() as session:
            await outbox.publish(session, message)
        assert len(await Backlog(engine).rows()) == 1
        assert await Desk(engine).rows() == []
        stop = asyncio.Event()
        consuming = asyncio.create_task(inbox.run(amqp_url, stop))
        async with running_inside(Relay(Settings(database_url=database_url, amqp_url=amqp_url, probes=""))):

            async def arrived() -> None:
                assert handled == [str(message.id)]
                async with engine.connect() as connection:
                    assert await connection.scalar(text(f'SELECT count(*) FROM "{SCHEMA}".inbox_message')) == 1
                    assert await connection.scalar(text(f'SELECT count(*) FROM "{SCHEMA}".outbox_message')) == 0

            await eventually(arrived, within=20)
        stop.set()
        await consuming


async def test_a_consumer_has_the_schema_of_its_settings_file(
    databases: Databases, broker: Broker, processes: Processes, tmp_path: Path
) -> None:
    """`relmsg consume --config FILE` tells the module's Inbox and Outbox what stands in the file."""
    await broker.queue("orders")
    (tmp_path / "relmsg.toml").write_text(f'schema = "{SCHEMA}"\n')
    (tmp_path / "shop.py").write_text(
        "import os\n"
        "from sqlalchemy.ext.asyncio import async_sessionmaker\n"
        "from relmsg import Inbox, Message\n"
        "from sqlalchemy.ext.asyncio import create_async_engine\n"
        "inbox = Inbox('billing', async_sessionmaker(create_async_engine(os.environ['RELMSG_DATABASE_URL'])))\n"
        "@inbox.handler('order.placed', queue='orders')\n"
        "async def handle(message: Message) -> None: ...\n"
    )
    told = {"PYTHONPATH": str(tmp_path), "RELMSG_PROBES": ""}
    refused = await processes.relmsg("consume", "shop:inbox", "--config", str(tmp_path / "relmsg.toml"), **told)
    assert await refused.wait() == 2
    assert f"schema {SCHEMA}" in refused.stderr
    upgraded = await processes.relmsg("db", "upgrade", "--config", str(tmp_path / "relmsg.toml"))
    assert await upgraded.wait() == 0, upgraded.stderr
    consuming = await processes.relmsg("consume", "shop:inbox", "--config", str(tmp_path / "relmsg.toml"), **told)
    await consuming.line("consuming orders as billing")
    assert await consuming.terminate() == 0


def test_what_is_given_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    """A schema given in code wins over RELMSG_SCHEMA, that over the file of RELMSG_CONFIG, that over `relmsg`."""
    file = tmp_path / "relmsg.toml"
    file.write_text('schema = "of_file"\n')
    environ = {"RELMSG_CONFIG": str(file)}
    assert schema_in_force(None, {}) == "relmsg"
    assert schema_in_force(None, environ) == "of_file"
    assert schema_in_force(None, environ | {"RELMSG_SCHEMA": "of_environment"}) == "of_environment"
    assert schema_in_force("given", environ | {"RELMSG_SCHEMA": "of_environment"}) == "given"
    with pytest.raises(SettingsError, match="schema 'pg_x'"):
        schema_in_force(None, {"RELMSG_SCHEMA": "pg_x"})
    with pytest.raises(SettingsError, match="cannot read"):
        schema_in_force(None, {"RELMSG_CONFIG": str(tmp_path / "none.toml")})


def test_settings_read_from_one_environment_ignore_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Settings.load` with an environment of its own does not look at that of the process."""
    monkeypatch.setenv("RELMSG_SCHEMA", "of_process")
    assert Settings.load({}, {}).schema == "relmsg"
    assert Settings().schema == "of_process"
