"""`relmsg bench` on real services: it measures every row, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import secrets
import signal
import sys

import aiormq
import pytest
from sqlalchemy import make_url, text

from relmsg import Message, Outbox
from relmsg.bench.place import place
from relmsg.broker.connection import Connection
from relmsg.settings import Settings
from tests.support.proxy import Proxy

NAME = r"relmsg_bench_[0-9a-f]{8}"
WAY = "a consumer, "
ROWS = {
    "services": {"SELECT 1", "COMMIT of one row", "confirm of one message"},
    "publishing": {"Publisher.publish_many"},
    "outbox": {
        "transactions, 1 at a time, no message",
        "transactions, 1 at a time, a message in each",
        "transactions, 8 at a time, no message",
        "transactions, 8 at a time, a message in each",
        "outbox.publish_many, 1,000 a transaction",
    },
    "relay": {"a relay empties an outbox"},
    "consumer": {WAY + "a transaction a message", WAY + "group commit", WAY + "a list handler"},
    "latency": {
        "commit to handler at 50 a second, polling only",
        "commit to handler at 50 a second, with a Hint",
    },
}


async def schemas(engine):
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'relmsg%'"))
        return set(found.scalars())


async def in_broker(broker, name):
    """Which of the things that a run of this name declares are there."""
    asked = {
        f"queue {name}": lambda channel: channel.queue_declare(name, passive=True),
        f"queue {name}.errors": lambda channel: channel.queue_declare(f"{name}.errors", passive=True),
        f"exchange {name}": lambda channel: channel.exchange_declare(name, passive=True),
        f"exchange {name}.errors": lambda channel: channel.exchange_declare(f"{name}.errors", passive=True),
    }
    found = set()
    for thing, ask in asked.items():
        async with broker.channel() as channel:
            try:
                await ask(channel)
            except aiormq.exceptions.ChannelNotFoundEntity:
                continue
            found.add(thing)
    return found


async def nothing_is_left(engine, broker, name):
    assert await schemas(engine) == {"relmsg"}
    assert await in_broker(broker, name) == set()


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_every_row_is_measured_and_nothing_is_left(processes, engine, sessions, broker, queue_type):
    """Each row has a rate and, but for the round trips, what limited it; the user's own outbox and slots are not
    touched, and neither schema nor queue nor exchange stays."""
    async with sessions.begin() as session:
        await Outbox("orders").publish(session, Message(type="mine", exchange="shop", routing_key="mine"))
    process = await processes.relmsg("bench", "--json", "--messages", "40", "--queue-type", queue_type)
    before = (await process.line(f"sends .* messages .* {queue_type} queue .* called ({NAME})"))[1]
    assert await process.wait(within=120) == 0, process.stderr
    rows = json.loads(process.stdout)
    found = {part: {row["what"] for row in rows if row["part"] == part} for part in ROWS}
    assert found == ROWS
    assert len(rows) == sum(map(len, ROWS.values()))
    for row in rows:
        assert row["rate"] > 0, row
        if row["part"] != "services":
            assert row["cpu_us"] > 0, row
            assert row["limited_by"], row
        if row["part"] in ("services", "latency"):
            assert 0 <= row["p50_ms"] <= row["p99_ms"], row
    compared = {row["what"]: row["times_without"] for row in rows if row["times_without"] is not None}
    assert set(compared) == {what for what in ROWS["outbox"] if what.endswith("a message in each")}
    rates = {row["what"]: row["rate"] for row in rows}
    for what, times in compared.items():
        assert times == pytest.approx(rates[what.replace("a message in each", "no message")] / rates[what])
    assert "could not remove" not in process.stderr
    await nothing_is_left(engine, broker, before)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT type FROM relmsg.outbox_message"))).scalars().all() == ["mine"]
        owned = await connection.execute(text("SELECT count(*) FROM relmsg.outbox_slot WHERE owner IS NOT NULL"))
        assert owned.scalar() == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("publishing", "Publisher.publish_many"),
        ("outbox", "transactions, 1 at a time"),
        ("relay", "a relay empties"),
        ("consumer", "a consumer, group commit"),
        ("latency", "polling only"),
    ],
)
async def test_stopped_in_the_middle_it_leaves_nothing(processes, engine, broker, signum, code, part, row):
    """Ctrl-C and SIGTERM end the row that runs; the rows before it are printed, and all that was made is removed."""
    process = await processes.relmsg("bench", "--only", part, "--messages", "20000")
    name = (await process.line(f"called ({NAME})"))[1]
    assert name in await schemas(engine)
    assert await in_broker(broker, name)
    await process.line(f"measuring .*{row}", within=60)
    process.send(signum)
    assert await process.wait(within=60) == code, process.stderr
    assert f"stopped by {signum.name}" in process.stderr
    assert "Traceback" not in process.stderr
    assert "SELECT 1" in process.stdout
    await nothing_is_left(engine, broker, name)


async def test_for_people_there_is_a_table_and_a_line_for_each_row(processes):
    """Without a terminal, progress is lines on stderr, and stdout holds the table alone."""
    process = await processes.relmsg("bench", "--only", "relay", "--messages", "40", "--body", "10")
    assert await process.wait(within=60) == 0, process.stderr
    assert "measuring a relay empties an outbox: 40\n" in process.stderr
    head, *rows = [line.split("\t") for line in process.stdout.splitlines()]
    assert [each.strip() for each in head] == ["what", "rate", "CPU us each", "note", "limited by"]
    assert [row[0].strip() for row in rows] == [
        "SELECT 1",
        "COMMIT of one row",
        "confirm of one message",
        "a relay empties an outbox",
    ]


async def test_on_a_terminal_there_is_a_bar(processes):
    """What moves on a terminal is a bar; the lines for logs are not there."""
    code = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    relmsg = [sys.executable, "-m", "relmsg.cli.main", "bench", "--only", "relay", "--messages", "40"]
    process = await processes.start(sys.executable, "-c", code, *relmsg, TERM="xterm", COLUMNS="200")
    assert await process.wait(within=60) == 0, process.stdout
    assert "measuring" not in process.stdout
    assert "━" in process.stdout
    assert "0/40" in process.stdout
    assert "limited by" in process.stdout


@pytest.mark.parametrize("variable", ["RELMSG_AMQP_URL", "RELMSG_DATABASE_URL"])
async def test_a_service_that_is_away_is_one_line(processes, engine, variable):
    """Exit code 3, and nothing was made in the service that is there."""
    scheme = "amqp" if variable == "RELMSG_AMQP_URL" else "postgresql+asyncpg"
    process = await processes.relmsg("bench", **{variable: f"{scheme}://guest:guest@127.0.0.1:1/x"})
    assert await process.wait(within=60) == 3
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 1, process.stderr
    assert await schemas(engine) == {"relmsg"}


async def test_a_broker_that_goes_away_meanwhile_is_told_as_such(processes, engine, broker, amqp_url):
    """Exit code 3, the rows before it are printed, and what stays in the broker is named."""
    async with Proxy.before(amqp_url) as proxy:
        process = await processes.relmsg(
            "bench", "--only", "publishing", "--messages", "1000000", RELMSG_AMQP_URL=proxy.through(amqp_url)
        )
        name = (await process.line(f"called ({NAME})"))[1]
        await process.line("measuring Publisher", within=60)
        await proxy.refuse()
        proxy.reset()
        assert await process.wait(within=90) == 3, process.stderr
    assert "SELECT 1" in process.stdout
    assert f"could not remove queue {name}" in process.stderr
    assert "Traceback" not in process.stderr
    for thing in (name, f"{name}.errors"):
        await broker.delete_queue(thing)
        await broker.delete_exchange(thing)
    assert await schemas(engine) == {"relmsg"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--only", "everything"], "everything"),
        (["--messages", "0"], "--messages"),
        (["--queue-type", "stream"], "stream"),
        (["--body", "2000000"], "RELMSG_MAX_BODY_BYTES"),
        (["--speed", "9"], "--speed"),
    ],
)
async def test_a_wrong_option_is_wrong_use(processes, arguments, word):
    """Exit code 2 and one line that names it."""
    process = await processes.relmsg("bench", *arguments)
    assert await process.wait(within=30) == 2
    (line,) = process.stderr.splitlines()
    assert word in line


async def test_who_may_not_create_a_schema_is_told_which_right_is_missing(processes, engine, database_url):
    """One line with the GRANT, exit code 2, and nothing to remove."""
    role = f"relmsg_test_{secrets.token_hex(4)}"
    url = make_url(database_url)
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'"))
    try:
        named = url.set(username=role, password="secret").render_as_string(hide_password=False)
        process = await processes.relmsg("bench", RELMSG_DATABASE_URL=named)
        assert await process.wait(within=30) == 2
        (line,) = process.stderr.splitlines()
        assert f'GRANT CREATE ON DATABASE "{url.database}" TO "{role}"' in line
    finally:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP ROLE {role}"))


async def test_what_could_not_be_removed_is_told_in_one_line(database_url, amqp_url, engine, broker):
    """With the broker gone at the end, the schema is removed all the same, and the rest is named once."""
    told = []
    name = f"relmsg_bench_{secrets.token_hex(4)}"
    settings = Settings(database_url=database_url, amqp_url=amqp_url)
    async with (
        Connection([amqp_url]) as connection,
        place(settings, connection, name=name, body=10, queue_type="quorum", complain=told.append),
    ):
        assert name in await schemas(engine)
        await connection.close()
    left = {f"queue {name}", f"queue {name}.errors", f"exchange {name}", f"exchange {name}.errors"}
    assert await schemas(engine) == {"relmsg"}
    assert await in_broker(broker, name) == left
    (line,) = told
    assert line.startswith("could not remove queue")
    assert all(thing in line for thing in left)
    assert "\n" not in line
    for thing in (name, f"{name}.errors"):
        await broker.delete_queue(thing)
        await broker.delete_exchange(thing)
