"""What a user copies from the documentation passes the type checkers that users have."""

from __future__ import annotations

import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from typed import ROOT, write

LIKE_A_USER = """
import asyncio

import aio_pika
from aio_pika.abc import AbstractExchange as OfAioPika
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import assert_type

from relmsg import AbstractExchange, Confirmed, Exchange, Message, Outbox, Publisher, Queue, Receipt, Retry, Topology
from relmsg.settings import Settings
from relmsg.testing import eventually


async def publish(exchange: AbstractExchange) -> None:
    await exchange.publish(aio_pika.Message(b"x"), "order.placed", timeout=5)


async def both(session: AsyncSession, exchange: OfAioPika) -> None:
    await publish(exchange)
    await publish(Outbox("orders").wrap(session, "shop"))


class TypedPublisher:
    def __init__(self, exchange: OfAioPika) -> None:
        self.exchange = exchange

    async def send(self, body: bytes) -> str:
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.exchange.publish(message, routing_key="order.placed", mandatory=True, timeout=5)
        return self.exchange.name


async def typed_for_aio_pika(session: AsyncSession) -> None:
    await TypedPublisher(Outbox("orders").wrap(session, "shop")).send(b"x")


settings = Settings(database_url="postgresql://h/d", batch=5, prefetch=None, lease=3, listen=False, probes="")
assert_type(settings.batch, int)
assert_type(settings.prefetch, int | None)
Settings(batch="5")  # type: ignore[arg-type]
Settings(batches=5)  # type: ignore[call-arg]


async def receipts(publisher: Publisher, raises: bool) -> None:
    assert_type(await publisher.publish(Message()), Confirmed)
    assert_type(await publisher.publish(Message(), raises=True), Confirmed)
    assert_type(await publisher.publish(Message(), raises=False), Receipt)
    assert_type(await publisher.publish(Message(), raises=raises), Receipt)
    many = await publisher.publish_many([Message()])
    assert_type(many[0], Confirmed)
    some = await publisher.publish_many([Message()], raises=False)
    assert_type(some[0], Receipt)


async def one() -> int:
    return 1


async def waited() -> None:
    assert_type(await eventually(one), int)
    assert_type(await eventually(lambda: "x"), str)


exchanges: list[Exchange] = [Exchange("shop")]
queues: tuple[Queue, ...] = (Queue("q"),)
topology = Topology(exchanges, queues)
assert_type(topology.exchanges, tuple[Exchange, ...])
assert_type(Retry(on=ValueError).on, tuple[type[BaseException], ...])
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The programs of README.md and docs/, and one that uses what the documentation promises of the types."""
    directory = tmp_path_factory.mktemp("typed")  # beside the pages: mypy's caches, which they share
    like_a_user = directory / "user" / "like_a_user.py"
    like_a_user.parent.mkdir()
    like_a_user.write_text(LIKE_A_USER)
    return [*write(directory), like_a_user]


def by_page(modules: list[Path]) -> list[list[Path]]:
    return [list(group) for _, group in groupby(modules, key=lambda module: module.parent)]


def check(*command: str, within: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=within, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def named(modules: list[Path]) -> list[Path]:
    return [module for module in modules if not module.name.startswith("page_")]


def test_programs_that_are_copied_pass_mypy_strictly(modules: list[Path]) -> None:
    """The README's shop.py and every program that a page names has no untyped corner."""
    for page in by_page(named(modules)):
        check("mypy", "--strict", "--config-file=", "--cache-dir=../strict", *map(str, page), within=page[0].parent)


def test_blocks_of_the_pages_pass_mypy(modules: list[Path]) -> None:
    """What the pages show piece by piece has no type error either."""
    for page in by_page(modules):
        check(
            "mypy",
            "--check-untyped-defs",
            "--config-file=",
            "--cache-dir=../plain",
            *map(str, page),
            within=page[0].parent,
        )


def test_the_examples_pass_mypy_strictly() -> None:
    """The examples are typed as a strict project would have it."""
    check("mypy", "--strict", "-p", "examples", within=ROOT)


def test_programs_that_are_copied_pass_pyright(modules: list[Path]) -> None:
    """Editors that check by pyright show no error in the README's shop.py, in named programs and in the examples."""
    for page in by_page(named(modules)):
        check("pyright", "--pythonpath", sys.executable, *map(str, page), within=page[0].parent)
    check("pyright", "--pythonpath", sys.executable, "examples", within=ROOT)
