"""The services of a benchmark: started, set up as the page says, made clean before each run, looked at afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aio_pika
import asyncpg

from compose.local import Services
from tests.benchmarks.cpu import machine_seconds, tree_seconds
from tests.benchmarks.model import CheckFailed, Cpu

# What differs from compose/local.py, which leaves PostgreSQL's defaults: memory as a server of this size would have it.
POSTGRES_SETTINGS = {"shared_buffers": "1GB"}
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
SETTLE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class CpuNow:
    """At one moment: CPU seconds used so far by the client, the broker, PostgreSQL, this suite, and all processes."""

    at: float
    client: float
    broker: float
    postgres: float
    suite: float
    machine: float

    def since(self, before: CpuNow, messages: int) -> Cpu:
        """Microseconds a message between two looks, and what the rest of the machine was at meanwhile."""
        client, broker, postgres, suite, machine, seconds = (
            getattr(self, name) - getattr(before, name)
            for name in ("client", "broker", "postgres", "suite", "machine", "at")
        )
        scale = 1e6 / messages
        elsewhere = (machine - client - broker - postgres - suite) / (seconds * (os.cpu_count() or 1))
        return Cpu(client * scale, broker * scale, postgres * scale, max(0.0, elsewhere))


class Bench:
    """PostgreSQL and RabbitMQ under the suite's hand, with a connection to each for looking, filling and cleaning."""

    def __init__(self, services: Services, *, quick: bool, queue_type: str | None = None) -> None:
        self.services = services
        self.quick = quick
        self.queue_type = queue_type or ""
        state = json.loads(Path(services.state_file or "").read_text())
        self._broker_pids = [services.broker_pid, state["epmd"]["pid"]["id"]]

    async def __aenter__(self) -> Self:
        await self._set_up_postgres()
        self.database = await asyncpg.connect(self.dsn)
        self._rabbitmq = await aio_pika.connect(self.amqp_url)
        self._channel = await self._rabbitmq.channel()
        self.versions = {
            "PostgreSQL": await self.database.fetchval("SHOW server_version"),
            "RabbitMQ": self._rabbitmq.transport.connection.server_properties["version"],
        }
        if not self.queue_type:
            self.queue_type = "quorum" if int(self.versions["RabbitMQ"].split(".")[0]) >= 4 else "classic"
        await asyncio.to_thread(self.relmsg, "db", "upgrade")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rabbitmq.close()
        await self.database.close()

    async def _set_up_postgres(self) -> None:
        connection = await asyncpg.connect(self.dsn)
        for name, value in POSTGRES_SETTINGS.items():
            await connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        await connection.close()
        await asyncio.to_thread(self.services.stop_postgres)
        await asyncio.to_thread(self.services.start_postgres)
        connection = await asyncpg.connect(self.dsn)
        for name in DURABLE:
            if await connection.fetchval(f"SHOW {name}") != "on":
                raise CheckFailed(f"PostgreSQL runs with {name} off: figures from it would mean nothing")
        await connection.close()

    # -- where things are

    @property
    def amqp_url(self) -> str:
        return self.services.amqp_url

    @property
    def database_url(self) -> str:
        """As SQLAlchemy and relmsg want it."""
        return self.services.database_url

    @property
    def dsn(self) -> str:
        """As asyncpg wants it."""
        return self.database_url.replace("+asyncpg", "")

    @property
    def environment(self) -> dict[str, str]:
        """What a contender needs to find the services."""
        return {"RELMSG_AMQP_URL": self.amqp_url, "RELMSG_DATABASE_URL": self.database_url}

    def relmsg(self, *arguments: str) -> str:
        """What ``relmsg ARGUMENTS`` prints. :raises CheckFailed: if it fails."""
        done = subprocess.run(
            [Path(sys.executable).with_name("relmsg"), *arguments],
            env=os.environ | self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CheckFailed(f"relmsg {' '.join(arguments)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    # -- cleanliness

    async def fresh_queue(self, name: str) -> None:
        """Delete the queue and declare it anew: durable, of the type that is measured."""
        await self._channel.queue_delete(name)
        await self._channel.declare_queue(name, durable=True, arguments={"x-queue-type": self.queue_type})

    async def empty(self, *tables: str) -> None:
        """Empty the tables, and start their identities anew."""
        await self.database.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY")

    async def settled(self, *tables: str) -> None:
        """After filling: statistics and visibility as in a table that lives, and no checkpoint due to what came before.

        Without it a run may meet an analyze, a vacuum, or a checkpoint of someone else's pages.
        """
        for table in tables:
            await self.database.execute(f"VACUUM (ANALYZE) {table}")
        await self.database.execute("CHECKPOINT")

    # -- looking

    def cpu(self, clients: Iterable[int]) -> CpuNow:
        """CPU used so far by these process trees, the broker and PostgreSQL."""
        return CpuNow(
            at=time.monotonic(),
            client=tree_seconds(clients),
            broker=tree_seconds(self._broker_pids),
            postgres=tree_seconds([self.services.postgres_pid]),
            suite=time.process_time(),
            machine=machine_seconds(),
        )

    async def depth(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        declared = await self._channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def rows(self, table: str) -> int:
        """How many rows a table has, or what else may stand after FROM."""
        return int(await self.database.fetchval(f"SELECT count(*) FROM {table}"))

    async def check_depth(self, queue: str, expected: int) -> None:
        """Wait until the queue holds so many, and make sure it stays so. :raises CheckFailed: otherwise."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while (found := await self.depth(queue)) < expected:  # noqa: ASYNC110 (the broker tells it by no event)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise CheckFailed(f"{queue} holds {found} messages, {expected} were sent") from None
        await asyncio.sleep(0.1)
        if (found := await self.depth(queue)) != expected:
            raise CheckFailed(f"{queue} holds {found} messages, {expected} were sent: there are duplicates")

    async def message_ids(self, queue: str, expected: int) -> Sequence[str]:
        """Take ``expected`` messages out of a queue, without acknowledging each, and return their ids."""
        ids: list[str] = []
        channel = await self._rabbitmq.channel()
        await channel.set_qos(prefetch_count=1000)
        done = asyncio.Event()

        async def take(message: Any) -> None:
            ids.append(message.message_id)
            if len(ids) >= expected:
                done.set()

        taken = await channel.get_queue(queue, ensure=False)
        await taken.consume(take, no_ack=True)
        try:
            async with asyncio.timeout(120):
                await done.wait()
        finally:
            await channel.close()
        return ids
