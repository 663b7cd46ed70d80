"""`relmsg consume` as a real process: killed, stopped, misused."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.failpoint import FAILPOINTS
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Process, Processes

QUEUE = "billing.orders"
MODULE = """
import asyncio, os, signal
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry

engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=12)
inbox = Inbox("billing", async_sessionmaker(engine))


@inbox.handler("order.placed", queue="billing.orders")
async def charge(message: Message, session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO effect (id) VALUES (:id)"), {"id": str(message.id)})


@inbox.handler("order.slow", queue="billing.orders")
async def slow(message: Message, session: AsyncSession) -> None:
    print("slow has begun", flush=True)
    while not Path(os.environ["GO"]).exists():
        await asyncio.sleep(0.02)
    await charge(message, session)


@inbox.handler("order.fatal", queue="billing.orders", retry=Retry(attempts=9))
async def fatal(message: Message, session: AsyncSession) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
async def queue(broker: Broker) -> str:
    return await broker.queue(QUEUE)


@pytest.fixture
async def effect(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (id text)"))
    return engine


@pytest.fixture
def module(tmp_path: Path) -> dict[str, str]:
    """The environment in which `worker:inbox` is found."""
    (tmp_path / "worker.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "GO": str(tmp_path / "go"), "RELMSG_PROBES": ""}


async def consuming(processes: Processes, environment: dict[str, str], **variables: str) -> Process:
    process = await processes.relmsg("consume", "worker:inbox", **(environment | variables))
    await process.line("consuming billing.orders as billing")
    return process


async def place(broker: Broker, *ids: str, message_type: str = "order.placed") -> None:
    for message_id in ids:
        await broker.publish(b"{}", routing_key=QUEUE, message_id=message_id, message_type=message_type)


async def scalars(engine: AsyncEngine, query: str) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text(query)))


async def all_taken(engine: AsyncEngine, broker: Broker, ids: list[str]) -> None:
    """Wait until each id has its effect and the queue is empty; the effects are then each there once."""

    async def done() -> None:
        assert set(await scalars(engine, "SELECT id FROM effect")) == set(ids)
        assert await broker.count(QUEUE) == 0

    await eventually(done, within=30)
    assert sorted(await scalars(engine, "SELECT id FROM effect")) == sorted(ids)


@pytest.mark.parametrize("failpoint", [name for name in FAILPOINTS if name.startswith("consumer.")])
async def test_killed_at_any_point_effects_happen_once(
    processes: Processes, module: dict[str, str], effect: AsyncEngine, broker: Broker, queue: str, failpoint: str
) -> None:
    """SIGKILL at a failpoint, the third time it is passed: after a restart each effect is there, and once."""
    ids = [str(n) for n in range(30)]
    await place(broker, *ids)
    killed = await processes.relmsg(
        "consume", "worker:inbox", **module, RELMSG_FAILPOINTS=f"{failpoint}=kill@3", RELMSG_CONCURRENCY="3"
    )
    assert await killed.wait() == -signal.SIGKILL
    process = await consuming(processes, module)
    await all_taken(effect, broker, ids)
    assert await process.terminate() == 0
    assert await broker.count(QUEUE) == 0
    assert await broker.count(f"{QUEUE}.errors") == 0
    assert await scalars(effect, "SELECT starts FROM relmsg.inbox_attempt") == []


async def test_sigterm_finishes_what_runs_and_leaves_the_rest(
    processes: Processes, module: dict[str, str], effect: AsyncEngine, broker: Broker, queue: str
) -> None:
    """SIGTERM: no more is taken, the running handler commits and acks, the rest is in the queue, exit code 0."""
    await place(broker, "slow", message_type="order.slow")
    process = await consuming(processes, module, RELMSG_CONCURRENCY="1")
    await process.line("slow has begun")
    await place(broker, "1", "2", "3")
    process.send(signal.SIGTERM)

    async def unsubscribed() -> None:
        assert await broker.consumers(QUEUE) == 0

    await eventually(unsubscribed)
    assert process.returncode is None
    await asyncio.to_thread(Path(module["GO"]).touch)
    assert await process.wait() == 0
    assert await scalars(effect, "SELECT id FROM effect") == ["slow"]
    assert await broker.count(QUEUE) == 3


async def test_the_environment_says_how_much_is_taken_ahead(
    processes: Processes, module: dict[str, str], effect: AsyncEngine, broker: Broker, queue: str
) -> None:
    """RELMSG_PREFETCH holds for a module that says nothing of it: two are handed over, the rest stays for others."""
    await place(broker, "slow", message_type="order.slow")
    await place(broker, "1", "2", "3")
    process = await consuming(processes, module, RELMSG_PREFETCH="2", RELMSG_CONCURRENCY="1")
    await process.line("slow has begun")
    assert await broker.count(QUEUE) == 2
    await asyncio.to_thread(Path(module["GO"]).touch)
    await all_taken(effect, broker, ["slow", "1", "2", "3"])
    assert await process.terminate() == 0


async def test_a_message_that_kills_its_worker_ends_in_the_error_queue_alone(
    processes: Processes, module: dict[str, str], effect: AsyncEngine, broker: Broker, queue: str
) -> None:
    """Three workers die of one message; the fourth puts it aside, and every neighbour is handled once."""
    neighbours = [str(n) for n in range(40)]
    await place(broker, *neighbours[:10])
    await place(broker, "fatal", message_type="order.fatal")
    await place(broker, *neighbours[10:])
    for _ in range(3):
        victim = await processes.relmsg("consume", "worker:inbox", **module)
        assert await victim.wait() == -signal.SIGKILL
    process = await consuming(processes, module)
    await all_taken(effect, broker, neighbours)

    async def arrived() -> None:
        assert await broker.count(f"{QUEUE}.errors") == 1

    await eventually(arrived)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.message_id == "fatal"
    assert copy.headers["relmsg-error-reason"] == "killed_worker"
    assert copy.headers["relmsg-error-type"] == "relmsg.errors.KilledWorker"
    assert copy.headers["relmsg-error-attempts"] == 3

    async def forgotten() -> None:
        assert await scalars(effect, "SELECT starts FROM relmsg.inbox_attempt") == []

    await eventually(forgotten)
    assert await process.terminate() == 0


async def test_the_probes_tell_how_it_goes(
    processes: Processes, module: dict[str, str], effect: AsyncEngine, broker: Broker, queue: str
) -> None:
    """/live and /ready answer 200, and /metrics counts handled messages and duplicates."""
    process = await consuming(processes, module, RELMSG_PROBES="127.0.0.1:0")
    port = (await process.line(r"probes on port (\d+)"))[1]
    await place(broker, "1", "1", "2")
    await all_taken(effect, broker, ["1", "2"])

    def page(path: str) -> str:
        with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            return str(answer.read().decode())

    assert (page("live"), page("ready")) == ("ok\n", "ok\n")
    counted = 'relmsg_consumer_deliveries_total{consumer="billing",outcome="%s",queue="billing.orders"} %s.0'

    def settled() -> None:
        assert counted % ("handled", 2) in page("metrics")
        assert counted % ("duplicate", 1) in page("metrics")

    await eventually(settled)
    assert await process.terminate() == 0


BROKEN = {
    "nowhere:inbox": (2, "no module 'nowhere'"),
    "worker:inbxo": (2, "did you mean inbox"),
    "worker": (2, "module:name"),
    "worker:engine": (2, "not Inbox"),
    "refused:inbox": (2, "'limit' (int) cannot be supplied"),
    "missing:inbox": (2, "queue 'not.there' does not exist"),
    "tables:inbox": (2, "relmsg db upgrade"),
    "away:inbox": (3, "PostgreSQL at 127.0.0.1:1"),
}


@pytest.mark.parametrize("target", BROKEN)
async def test_wrong_use_is_one_line(
    processes: Processes, module: dict[str, str], tmp_path: Path, queue: str, target: str
) -> None:
    """What is wrong is said in one line that names it, without a traceback, and with the right exit code."""
    code, said = BROKEN[target]
    inbox = 'inbox = Inbox("billing", async_sessionmaker(engine))'
    for name, old, new in [
        ("refused", "message: Message, session", "limit: int, session"),
        ("missing", 'queue="billing.orders"', 'queue="not.there"'),
        ("tables", inbox, inbox.replace("engine)", 'engine), schema="other"')),
        ("away", 'os.environ["RELMSG_DATABASE_URL"]', '"postgresql+asyncpg://user:hunter2@127.0.0.1:1/nowhere"'),
    ]:
        (tmp_path / f"{name}.py").write_text(MODULE.replace(old, new))
    process = await processes.relmsg("consume", target, **module)
    assert await process.wait() == code, process.stderr
    (complaint,) = [line for line in process.err if line.startswith("relmsg: ")]
    assert said in complaint
    assert "Traceback" not in process.stderr
    assert "hunter2" not in process.stderr


async def test_a_broker_that_is_away_exits_with_3(processes: Processes, module: dict[str, str]) -> None:
    """Without a broker at the start the worker ends at once with exit code 3; a supervisor may start it again."""
    process = await processes.relmsg(
        "consume", "worker:inbox", **module, RELMSG_AMQP_URL="amqp://user:hunter2@127.0.0.1:1/"
    )
    assert await process.wait() == 3
    assert "RabbitMQ at 127.0.0.1:1 is away" in process.stderr
    assert "hunter2" not in process.stderr
