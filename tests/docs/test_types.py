"""What a user copies from the documentation passes the type checkers that users have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from typed import ROOT, Written, write

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


# As strict as pyproject.toml, whose cache (`make check` fills it) holds the libraries then. What pages show piece by
# piece is less strict: their blocks leave types out.
MYPY = """
[mypy]
strict = true
python_version = 3.11

[mypy-pages.*]
disallow_untyped_defs = false
disallow_incomplete_defs = false
disallow_untyped_calls = false
disallow_any_generics = false
disallow_untyped_decorators = false
warn_return_any = false
warn_unused_ignores = false
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The programs of README.md and docs/, and one that uses what the documentation promises of the types."""
    written = write(tmp_path_factory.mktemp("typed"))
    written.copied.append(written.copied[0].with_name("like_a_user.py"))
    written.copied[-1].write_text(LIKE_A_USER)
    return written


def check(*command: str | Path, within: Path = ROOT) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=within, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def test_programs_that_are_copied_and_examples_pass_mypy_strictly_and_blocks_of_pages_pass_it(
    written: Written, tmp_path: Path
) -> None:
    """The README's shop.py, every program that a page names and the examples have no untyped corner; what the pages
    show piece by piece has no type error either."""
    config = tmp_path / "mypy.ini"
    config.write_text(MYPY)
    check("mypy", f"--config-file={config}", *written.copied, *written.pages, "examples")


def test_programs_that_are_copied_pass_pyright(written: Written) -> None:
    """Editors that check by pyright show no error in the README's shop.py, in named programs and in the examples."""
    copied = written.copied[0].parent
    check("pyright", "--pythonpath", sys.executable, ".", ROOT / "examples", within=copied)
