"""A real PostgreSQL and a real RabbitMQ that speak TLS, and passwords that change while a relay works."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiormq
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.pool import NullPool

from compose.local import Services
from relmsg.database import create_engine
from relmsg.migrate import upgrade
from relmsg.testing import eventually
from tests.support.processes import Process, Processes
from tests.support.tls import Secured, secure

PUBLISH = "INSERT INTO relmsg.outbox_message (exchange, routing_key, body) VALUES ('', 'q', '')"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Servers of this module's own, with relmsg's tables."""
    with Services() as services:
        services.start()
        yield secure(services, tmp_path_factory.mktemp("tls"))


@pytest.fixture
def database_url(secured: Secured) -> str:
    """PostgreSQL's URL, by which its certificate and its name are verified."""
    return f"{secured.database_url}?sslmode=verify-full&sslrootcert={secured.ca}"


@pytest.fixture
def amqp_url(secured: Secured) -> str:
    """RabbitMQ's URL, with our CA and our own certificate."""
    return f"{secured.amqp_url}?cafile={secured.ca}&certfile={secured.certificate}&keyfile={secured.key}"


@pytest.fixture
async def processes(database_url: str, amqp_url: str) -> AsyncIterator[Processes]:
    """Real processes on these servers."""
    await upgrade(database_url)
    named = {"RELMSG_DATABASE_URL": database_url, "RELMSG_AMQP_URL": amqp_url, "RELMSG_REQUIRE_TLS": "on"}
    async with Processes(named | {"RELMSG_PROBES": "", "RELMSG_POLL_MAX": "0.05"}) as processes:
        yield processes


async def execute(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def sent(database_url: str) -> None:
    """Wait until nothing waits in the outbox."""
    engine = create_engine(database_url, poolclass=NullPool)

    async def empty() -> None:
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM relmsg.outbox_message")) == 0

    await eventually(empty, within=60, every=0.2)
    await engine.dispose()


async def queue(amqp_url: str) -> None:
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    await channel.queue_declare("q")
    await connection.close()


async def test_a_relay_works_over_tls(processes: Processes, secured: Secured, database_url: str, amqp_url: str) -> None:
    """With the CA's file, a certificate of its own and the servers' names; both servers say that it is encrypted."""
    await queue(amqp_url)
    relay = await processes.relmsg("relay")
    await relay.line("^relaying", within=60)
    await execute(database_url, PUBLISH)
    await sent(database_url)
    engine = create_engine(database_url, poolclass=NullPool)
    async with engine.connect() as connection:
        ssl = await connection.scalars(
            text("SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'relmsg'")
        )
        assert set(ssl) == {True}
    await engine.dispose()
    told = await asyncio.to_thread(secured.services.rabbitmqctl, "list_connections", "ssl", "peer_cert_subject")
    assert "true\tCN=relay" in told
    assert "encrypted" not in relay.stderr
    assert await relay.terminate() == 0


async def refused(process: Process) -> str:
    """The one line in which a process says why it cannot connect."""
    assert await process.wait(within=60) == 3, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("relmsg: ")]
    assert "Traceback" not in process.stderr
    return line


async def test_a_server_that_cannot_prove_its_name_is_refused(
    processes: Processes, secured: Secured, database_url: str, amqp_url: str
) -> None:
    """Another CA's certificate, and one for another host name, end the command before a password is sent."""
    other_ca = str(secured.other_ca)
    for url in (database_url.replace(str(secured.ca), other_ca), database_url.replace("@localhost", "@127.0.0.1")):
        line = await refused(await processes.relmsg("outbox", "status", RELMSG_DATABASE_URL=url))
        assert "certificate" in line
    for url in (amqp_url.replace(str(secured.ca), other_ca), amqp_url.replace("@localhost", "@127.0.0.1")):
        line = await refused(await processes.relmsg("errors", "list", "--queue", "q.errors", RELMSG_AMQP_URL=url))
        assert "certificate" in line


async def test_without_tls_or_a_certificate_nothing_gets_through(
    processes: Processes, secured: Secured, database_url: str
) -> None:
    """What the servers demand is told in one line."""
    plain = database_url.replace("verify-full", "disable").partition("&")[0]
    process = await processes.relmsg("outbox", "status", RELMSG_DATABASE_URL=plain)
    assert await process.wait(within=60) == 2
    assert "pg_hba.conf" in process.stderr
    without = f"{secured.amqp_url}?cafile={secured.ca}"
    await refused(await processes.relmsg("errors", "list", "--queue", "q.errors", RELMSG_AMQP_URL=without))


async def test_passwords_in_files_change_while_a_relay_works(
    processes: Processes, secured: Secured, database_url: str, amqp_url: str, tmp_path: Path
) -> None:
    """A new connection is made with what the file holds then: the relay goes on without a restart."""
    await queue(amqp_url)
    name = f"relay_{secrets.token_hex(4)}"
    await execute(database_url, f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'first-secret'")
    rabbitmqctl = secured.services.rabbitmqctl
    await asyncio.to_thread(rabbitmqctl, "add_user", name, "first-secret")
    await asyncio.to_thread(rabbitmqctl, "set_permissions", name, ".*", ".*", ".*")
    files = {"RELMSG_DATABASE_URL": tmp_path / "database", "RELMSG_AMQP_URL": tmp_path / "amqp"}

    def write(password: str) -> None:
        database = make_url(database_url).set(username=name, password=password)
        files["RELMSG_DATABASE_URL"].write_text(database.render_as_string(hide_password=False) + "\n")
        broker = f"amqps://{name}:{password}@{amqp_url.partition('@')[2]}"
        files["RELMSG_AMQP_URL"].write_text(broker + "\n")

    write("first-secret")
    relay = await processes.start(
        "env",
        *(f"--unset={variable}" for variable in files),
        *(f"{variable}_FILE={path}" for variable, path in files.items()),
        str(Path(sys.executable).with_name("relmsg")),
        "relay",
    )
    await relay.line("^relaying", within=60)
    await execute(database_url, PUBLISH)
    await sent(database_url)
    await execute(database_url, f"ALTER ROLE {name} PASSWORD 'second-secret'")
    await asyncio.to_thread(rabbitmqctl, "change_password", name, "second-secret")
    write("second-secret")
    await execute(database_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
    await asyncio.to_thread(rabbitmqctl, "close_all_user_connections", name, "rotated")
    await execute(database_url, PUBLISH)
    await sent(database_url)
    assert await relay.terminate() == 0
    assert "second-secret" not in relay.stderr
