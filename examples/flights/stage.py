"""What the demo plays on: two databases of its own, and real processes that are always ended."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import MetaData, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from compose.local import Services

RELMSG = [sys.executable, "-m", "relmsg.cli.main"]
# Where util-linux is there, what we start does not outlive us even if we are killed.
GUARD = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
STOP_SECONDS = 30.0
START_SECONDS = 30.0


class DemoFailed(Exception):
    """The demo cannot go on, or its figures are wrong; the text is one line."""


class Actor:
    """One process. What it has counted is remembered after its end, as of when it was asked last."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.duplicates = 0
        self.in_flight = 0
        self._process = process
        self._log = log
        self._port: int | None = None

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def started(self) -> None:
        """Wait until it says that it works, and on which port its metrics are."""
        while not (said := re.search(r"probes on port (\d+)", self._log.read_text())):
            if not self.is_running:
                raise DemoFailed(f"{self.name} ended while starting: {self.last_words()}")
            await asyncio.sleep(0.05)
        self._port = int(said[1])

    async def ask(self) -> None:
        """Read its metrics; what it does not answer stays as it was."""
        if self._port is None or not self.is_running:
            return
        with suppress(OSError):
            page = await asyncio.to_thread(_get, f"http://127.0.0.1:{self._port}/metrics")
            samples = [each for family in text_string_to_metric_families(page) for each in family.samples]
            self.duplicates = sum(
                int(each.value)
                for each in samples
                if each.name == "relmsg_consumer_deliveries_total" and each.labels["outcome"] == "duplicate"
            )
            self.in_flight = sum(int(each.value) for each in samples if each.name == "relmsg_consumer_in_flight")

    async def finished(self) -> None:
        """Wait until it ends by itself. :raises DemoFailed: unless it was content."""
        if await self._process.wait() != 0:
            raise DemoFailed(f"{self.name} ended with exit code {self._process.returncode}: {self.last_words()}")

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self._process.wait()

    async def end(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def last_words(self) -> str:
        lines = self._log.read_text().strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Stage:
    """Two databases and whatever processes are started, until the end of the ``async with``, however that comes."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.actors: list[Actor] = []
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._logs = Path(tempfile.mkdtemp(prefix="relmsg-demo-"))
        self._exit.callback(shutil.rmtree, self._logs, ignore_errors=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(actor.end() for actor in self.actors))
        await self._exit.aclose()

    def at_the_end(self, clean: Callable[[], Awaitable[None]]) -> None:
        """Have this done when all processes are ended, before the databases are dropped."""
        self._exit.push_async_callback(clean)

    async def database(self, service: str, metadata: MetaData) -> AsyncEngine:
        """A new database with the service's own tables and relmsg's; it is dropped at the end."""
        server = make_url(self.services.database_url)
        name = f"{service}_{uuid.uuid4().hex[:8]}"
        admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
        self._exit.push_async_callback(admin.dispose)
        async with admin.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        self._exit.push_async_callback(_drop, admin, name)
        engine = create_async_engine(server.set(database=name))
        self._exit.push_async_callback(engine.dispose)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await self.run("db", "upgrade", database=engine)
        return engine

    async def run(self, *verb: str, database: AsyncEngine | None = None) -> str:
        """What `relmsg VERB` prints. :raises DemoFailed: if it fails, with its own line."""
        process = await asyncio.create_subprocess_exec(
            *RELMSG, *verb, env=self._environment(database), stdout=-1, stderr=-1, start_new_session=True
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise DemoFailed(f"relmsg {' '.join(verb)}: {err.decode().strip() or process.returncode}")
        return out.decode()

    async def start(self, name: str, command: list[str], database: AsyncEngine) -> Actor:
        """Start a process; it is not told of a Ctrl-C at our terminal, we end it."""
        log = self._logs / f"{uuid.uuid4().hex}.log"
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *GUARD,
                *command,
                env=self._environment(database),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        actor = Actor(name, process, log)
        self.actors.append(actor)
        return actor

    async def start_relmsg(self, name: str, *verb: str, database: AsyncEngine) -> Actor:
        """Start a `relmsg` process and wait until it works."""
        actor = await self.start(name, [*RELMSG, *verb, "--probes", "127.0.0.1:0"], database)
        try:
            async with asyncio.timeout(START_SECONDS):
                await actor.started()
        except TimeoutError:
            raise DemoFailed(f"{name} does not start: {actor.last_words()}") from None
        return actor

    async def ask_all(self) -> None:
        await asyncio.gather(*(actor.ask() for actor in self.actors))

    def _environment(self, database: AsyncEngine | None) -> dict[str, str]:
        url = database.url.render_as_string(hide_password=False) if database else self.services.database_url
        return os.environ | {
            "PYTHONUNBUFFERED": "1",
            "RELMSG_DATABASE_URL": url,
            "RELMSG_AMQP_URL": self.services.amqp_url,
            # A killed relay's slots are free after its lease. 15 s is the default; the demo has less time.
            "RELMSG_LEASE": "6",
            "RELMSG_RENEW": "2",
        }


async def _drop(admin: AsyncEngine, name: str) -> None:
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=2) as reply:
        return str(reply.read().decode())
