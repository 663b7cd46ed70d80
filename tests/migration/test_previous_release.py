"""The previous release at work on the new tables, beside the new version and under load, both ways."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Process, Processes

ROOT = Path(__file__).resolve().parents[2]
PREVIOUS = "5cbc994de0eae1bfd66ff4505da77aa2642aff66"  # the last commit before migration 0003
PATIENCE = 60.0

APPLICATION = """
import asyncio, os, sys
from importlib.util import find_spec

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg import HalfProducer, Inbox, Message, Outbox

sessions = async_sessionmaker(create_async_engine(os.environ["RELMSG_DATABASE_URL"]))
inbox = Inbox("billing", sessions)


@inbox.handler("order.placed", queue="orders")
async def handle(message: Message, session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO public.effect VALUES (:id)"), {"id": str(message.id)})


def order(name: str, number: int) -> Message:
    return Message(type="order.placed", routing_key="orders", id=Message.id_for(f"{name}-{number}"), ordering_key=name)


async def publish(name: str, count: int) -> None:
    outbox = Outbox("shop")
    for number in range(count):
        async with sessions.begin() as session:
            await outbox.publish(session, order(name, number))


async def half(name: str, count: int) -> None:
    async with HalfProducer(os.environ["RELMSG_AMQP_URL"], group="shop") as producer:
        for number in range(count):
            async with producer.begin(order(name, number)):
                pass


if __name__ == "__main__":
    print("previous" if find_spec("relmsg.trouble") else "new")
    asyncio.run({"publish": publish, "half": half}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
"""


class Version:
    """One version of relmsg, whose programs run on the test's database and broker."""

    def __init__(self, name: str, tree: Path, application: Path, processes: Processes) -> None:
        self.name = name
        self._is_ours = tree == ROOT
        self._path = f"{tree}:{application.parent}"
        self._application = application
        self._processes = processes

    async def relmsg(self, *arguments: str) -> Process:
        """``relmsg ARGUMENTS`` of this version."""
        if self._is_ours:
            return await self._processes.relmsg(*arguments, PYTHONPATH=self._path, RELMSG_PROBES="")
        command = "import sys; from relmsg.cli.main import main; sys.exit(main())"
        return await self._processes.python("-P", "-c", command, *arguments, PYTHONPATH=self._path, RELMSG_PROBES="")

    async def at_work(self) -> list[Process]:
        """A relay, which coordinates too, and a consumer."""
        return [await self.relmsg("relay"), await self.relmsg("consume", "application:inbox")]

    async def sends(self, verb: str, name: str, count: int) -> Process:
        """A publisher that has begun: its transactions, or its half messages, come one after another."""
        program = ("-m", self._application.stem, verb, name, str(count))
        if self._is_ours:
            sender = await self._processes.python_with_relmsg(*program, PYTHONPATH=self._path)
        else:
            sender = await self._processes.python("-P", *program, PYTHONPATH=self._path)
        await sender.line(f"^{self.name}$")
        return sender


@pytest.fixture
def previous_tree(tmp_path: Path) -> Path:
    """The previous release, out of the history of this repository."""
    tree = tmp_path / "previous"
    tree.mkdir()
    archive = subprocess.run(
        ["git", "archive", PREVIOUS, "relmsg", "migrations"], cwd=ROOT, capture_output=True, check=False
    )
    assert archive.returncode == 0, f"the history is needed (git fetch --unshallow): {archive.stderr.decode()}"
    subprocess.run(["tar", "--extract", "--directory", str(tree)], input=archive.stdout, check=True)
    return tree


async def ended(*processes: Process) -> None:
    for process in processes:
        assert await process.terminate(within=PATIENCE) == 0, process.stderr


async def done(*processes: Process) -> None:
    for process in processes:
        assert await process.wait(within=PATIENCE) == 0, process.stderr


async def test_the_previous_release_works_beside_the_new_one(
    empty_url: str,
    empty_engine: AsyncEngine,
    amqp_url: str,
    broker: Broker,
    previous_tree: Path,
    tmp_path: Path,
) -> None:
    """It publishes, relays, consumes and coordinates on the new tables, started again and beside the new version."""
    await broker.queue("orders")
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE TABLE public.effect (id text)"))
    application = tmp_path / "application" / "application.py"
    application.parent.mkdir()
    application.write_text(APPLICATION)
    sent: Counter[str] = Counter()

    async def handled() -> None:
        async with empty_engine.connect() as connection:
            rows = (await connection.execute(text("SELECT id, count(*) FROM public.effect GROUP BY id"))).all()
        assert len(rows) == sent.total()
        assert {count for _, count in rows} == {1}

    async with Processes({"RELMSG_DATABASE_URL": empty_url, "RELMSG_AMQP_URL": amqp_url}) as processes:
        previous = Version("previous", previous_tree, application, processes)
        new = Version("new", ROOT, application, processes)

        async def send(version: Version, verb: str, name: str, count: int) -> Process:
            sent[name] += count
            return await version.sends(verb, name, count)

        await done(await previous.relmsg("db", "upgrade"))
        old = await previous.at_work()
        under_way = [await send(previous, "publish", "during", 300), await send(previous, "half", "half-during", 40)]
        await done(await new.relmsg("db", "upgrade"))
        await done(*under_way)
        await eventually(handled, within=PATIENCE)

        await ended(*old)  # and deployed again, as a pod that is moved: it has to start on the newer tables
        old = await previous.at_work()
        await done(await send(new, "publish", "new-to-old", 100), await send(new, "half", "half-new-to-old", 20))
        await eventually(handled, within=PATIENCE)

        young = await new.at_work()
        await done(
            await send(previous, "publish", "mixed-previous", 200),
            await send(new, "publish", "mixed-new", 200),
            await send(previous, "half", "half-mixed-previous", 20),
            await send(new, "half", "half-mixed-new", 20),
        )
        await eventually(handled, within=PATIENCE)

        await ended(*old)
        await done(
            await send(previous, "publish", "old-to-new", 100), await send(previous, "half", "half-old-to-new", 20)
        )
        await eventually(handled, within=PATIENCE)
        await ended(*young)
