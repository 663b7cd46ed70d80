"""`relmsg relay` and `relmsg outbox` as real processes."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Message, Outbox
from relmsg.outbox.backlog import Backlog
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Process, Processes
from tests.support.relaying import emptied, waiting

OUTBOX = Outbox("orders")
ANY_PORT = {"RELMSG_PROBES": "127.0.0.1:0"}


async def commit(sessions: async_sessionmaker[AsyncSession], *messages: Message) -> None:
    async with sessions() as session, session.begin():
        await OUTBOX.publish_many(session, messages)


def messages(count: int, **given: Any) -> list[Message]:
    return [Message(type="t", body={"n": n}, routing_key="q", **given) for n in range(count)]


async def started(relay: Process) -> int:
    """Wait for its line; the port of its probes."""
    found = await relay.line(r"relaying schema relmsg as \S+, probes on port (\d+)")
    return int(found.group(1))


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_sigterm_under_load_settles_what_is_in_flight(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], processes: Processes, broker: Broker
) -> None:
    """A relay asked to stop exits 0, gives its slots back, and no confirmed row is left in the outbox."""
    await broker.queue("q")
    await commit(sessions, *messages(20_000))
    relay = await processes.command("relay", RELMSG_BATCH="100", **ANY_PORT)

    async def under_way() -> None:
        assert await waiting(engine) < 20_000

    await eventually(under_way, within=20)
    assert await relay.terminate(within=15) == 0
    left = await waiting(engine)
    assert 0 < left < 20_000
    assert await broker.count("q") == 20_000 - left
    assert (await Backlog(engine).status())["relays"] == []


async def test_a_killed_relay_is_replaced_within_20_seconds(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], processes: Processes, broker: Broker
) -> None:
    """With default leases, the messages of a relay that was killed are sent by the other within 20 s."""
    await broker.queue("q")
    doomed = await processes.relmsg("relay", "--name", "doomed", **ANY_PORT)
    await started(doomed)
    other = await processes.relmsg("relay", "--name", "other", **ANY_PORT)

    async def both() -> None:
        relays = (await Backlog(engine).status())["relays"]
        assert [each["slots"] for each in relays] == [32, 32]

    await eventually(both, within=30)
    await doomed.kill()
    await commit(sessions, *messages(200))
    await emptied(engine, within=20)
    assert await broker.count("q") == 200
    assert await other.terminate() == 0


async def test_probes_and_metrics_on_one_port(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], processes: Processes, broker: Broker
) -> None:
    """/live and /ready answer; /metrics has backlog, age, receipts, blocked seconds, reconnects and parked rows."""
    relay = await processes.relmsg("relay", **ANY_PORT)
    port = await started(relay)
    await broker.queue("q")
    await commit(sessions, *messages(10), Message(body=b"", routing_key="nowhere"))
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, type) "
                "VALUES ('', 'q', '', repeat('t', 256))"
            )
        )

    def told() -> None:
        code, metrics = get(port, "/metrics")
        assert code == 200
        assert 'relmsg_relay_receipts_total{receipt="confirmed"} 10.0' in metrics
        assert "relmsg_outbox_backlog 1.0" in metrics
        assert "relmsg_outbox_parked 1.0" in metrics
        assert "relmsg_relay_blocked_seconds_total 0.0" in metrics
        assert "relmsg_relay_reconnects_total 0.0" in metrics
        age = next(line for line in metrics.splitlines() if line.startswith("relmsg_outbox_oldest_seconds "))
        assert float(age.split()[1]) > 0

    await eventually(told, within=15)
    assert get(port, "/live") == (200, "ok\n")
    assert get(port, "/ready") == (200, "ok\n")
    assert get(port, "/other")[0] == 404
    assert await relay.terminate() == 0


async def test_a_frozen_relay_wakes_up_as_a_stranger(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], processes: Processes, broker: Broker
) -> None:
    """A relay that was stopped past its lease loses its slots to another, and takes its share again afterwards."""
    await broker.queue("q")
    quick = {"RELMSG_LEASE": "2", "RELMSG_RENEW": "0.5", **ANY_PORT}
    frozen = await processes.relmsg("relay", "--name", "frozen", **quick)
    await started(frozen)
    await commit(sessions, *messages(100))
    await emptied(engine)
    frozen.send(signal.SIGSTOP)
    other = await processes.relmsg("relay", "--name", "other", **quick)
    await commit(sessions, *messages(100))
    await emptied(engine, within=20)
    frozen.send(signal.SIGCONT)

    async def shared() -> None:
        relays = (await Backlog(engine).status())["relays"]
        assert [(each["relay"].split("/")[0], each["slots"]) for each in relays] == [("frozen", 32), ("other", 32)]

    await eventually(shared, within=20)
    await commit(sessions, *messages(100))
    await emptied(engine)
    assert await broker.count("q") == 300
    assert await frozen.terminate() == 0
    assert await other.terminate() == 0


async def test_the_database_may_go_and_come_back(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], processes: Processes, broker: Broker
) -> None:
    """Connections that PostgreSQL ends are made again, and nothing is sent twice or lost for it."""
    await broker.queue("q")
    relay = await processes.relmsg("relay", **ANY_PORT)
    await started(relay)
    for _ in range(3):
        await commit(sessions, *messages(200))
        async with engine.connect() as connection:
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'relmsg'"
                )
            )
        await engine.dispose()
        await emptied(engine, within=20)
    got = {each.message_id for each in await broker.drain("q")}
    assert len(got) == 600
    assert await relay.terminate() == 0


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"RELMSG_AMQP_URL": "amqp://guest:secret@127.0.0.1:1/"}, 3, "RabbitMQ"),
        ({"RELMSG_DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/d"}, 3, "PostgreSQL"),
        ({"RELMSG_AMQP_URL": "http://guest:secret@127.0.0.1/"}, 2, "amqp"),
        ({"RELMSG_DATABASE_URL": "mysql://u:secret@127.0.0.1/d"}, 2, "postgresql"),
        ({"RELMSG_SCHEMA": "elsewhere"}, 2, "relmsg db upgrade"),
        ({"RELMSG_BATSCH": "5"}, 2, "did you mean RELMSG_BATCH"),
        ({"RELMSG_FAILPOINTS": "relay.nothing=kill"}, 2, "RELMSG_FAILPOINTS"),
    ],
)
async def test_bad_input_is_one_line_and_an_exit_code(
    processes: Processes, variables: dict[str, str], code: int, words: str
) -> None:
    """Wrong settings and services that are away end in one line that says what to do, without secrets or traceback."""
    relay = await processes.relmsg("relay", **{"RELMSG_PROBES": "", **variables})
    assert await relay.wait(within=30) == code
    said = [line for line in relay.stderr.splitlines() if line.startswith("relmsg: ")]
    assert len(said) == 1, relay.stderr
    assert words in said[0]
    assert "secret" not in relay.stderr
    assert "Traceback" not in relay.stderr


async def test_the_outbox_verbs(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], processes: Processes, broker: Broker
) -> None:
    """status, list, show and retry tell and mend what is in the outbox, for people and as JSON."""

    async def said(*arguments: str, code: int = 0) -> str:
        process = await processes.relmsg("outbox", *arguments)
        assert await process.wait() == code, process.stderr
        assert "Traceback" not in process.stderr
        return process.stdout

    message = messages(1, ordering_key="k")[0]
    await commit(sessions, message)
    assert "none is running" in await said("status")
    (row,) = json.loads(await said("list", "--json"))
    assert (row["message_id"], row["state"], row["ordering_key"]) == (str(message.id), "waiting", "k")
    assert str(message.id) in await said("show", str(message.id))
    (shown,) = json.loads(await said("show", str(row["id"]), "--json"))
    assert shown["body"] == '{"n":0}'
    await said("show", "999999", code=1)
    await said("retry", str(row["id"]), code=1)
    await said("retry", code=2)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE relmsg.outbox_message SET parked_at = now(), last_error = 'why', attempts = 1")
        )
    status = json.loads(await said("status", "--json"))
    assert (status["waiting"], status["parked"]) == (0, 1)
    assert json.loads(await said("list", "--waiting", "--json")) == []
    assert "why" in await said("list", "--parked")
    assert json.loads(await said("retry", "--all", "--dry-run", "--json")) == {"dry_run": True, "messages": 1}
    assert "1 messages came back" in await said("retry", str(message.id))
    await broker.queue("q")
    relay = await processes.relmsg("relay", RELMSG_PROBES="")
    await emptied(engine)
    assert [each.message_id for each in await broker.drain("q")] == [str(message.id)]
    assert await relay.terminate() == 0
