"""The private PostgreSQL: its cluster, its process, and how it ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

from compose.services.errors import ServicesError
from compose.services.ports import free_ports
from compose.services.processes import Process, alive, descendants, gone, kill, send, spawn
from compose.services.programs import Programs
from compose.services.state import State
from compose.services.userland import Userland
from compose.services.waiting import Cancellation, until_answering, until_done

SOCKET_PATH_BYTES = 107  # sun_path, less its terminating NUL
FAST_SECONDS = 30.0
IMMEDIATE_SECONDS = 10.0


def account(userland: Userland) -> list[int] | None:
    """User and group id that PostgreSQL runs as if we are root, whom it refuses; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    owner = userland.owner("postgres", "nobody")
    if owner is None:
        raise ServicesError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
    return owner


class Postgres:
    """The PostgreSQL of a state file: ``prepare`` makes it once, then it is launched and ended at will."""

    def __init__(self, state: State, cancellation: Cancellation) -> None:
        self._state = state
        self._cancellation = cancellation

    @property
    def pid(self) -> int:
        """The postmaster's process id. :raises ServicesError: while PostgreSQL is down."""
        process = self._known.get("pid")
        if not alive(process):
            raise ServicesError("PostgreSQL is not running")
        return int(process["id"])

    def prepare(self, directory: Path, programs: Programs, owner: list[int] | None) -> None:
        """Make an empty cluster below the directory, with a port and a password of its own."""
        home = directory / "postgres"
        home.mkdir(mode=0o700)
        password = secrets.token_hex(16)
        secret = home / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if owner:
            for path in (home, secret):
                os.chown(path, *owner)
        log = directory / "postgres.log"
        port = free_ports(1)[0]
        postgres: dict[str, Any] = {
            **programs.named(), "owner": owner, "home": str(home), "data": str(home / "data"), "log": str(log),
            "port": port, "url": f"postgresql+asyncpg://postgres:{password}@127.0.0.1:{port}/postgres",
        }  # fmt: skip
        # --no-sync: the empty cluster need not survive a power cut; what is committed later is synced as ever.
        initdb = [
            "initdb", "-D", postgres["data"], "-U", "postgres", "--pwfile", str(secret),
            "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip
        with self._state.changed() as state:
            postgres["initdb"] = _spawn(postgres, initdb)
            state["postgres"] = postgres
        until_done("initdb", postgres["initdb"], log, self._cancellation)
        # A cluster whose socket path would be too long has none: TCP on the loopback is all we use.
        sockets = str(home) if len(f"{home}/.s.PGSQL.{port}") <= SOCKET_PATH_BYTES else ""
        with (home / "data" / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{sockets}'\n"
                "max_connections = 200\nmax_prepared_transactions = 10\nfsync = on\ncluster_name = 'relmsg-local'\n"
                "logging_collector = off\nlog_destination = 'stderr'\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n"
            )

    def start(self) -> None:
        """:raises ServicesError: if it is still running, or does not answer within 90 s."""
        if alive(self._known.get("pid")):
            raise ServicesError("PostgreSQL is still running: stop it first")
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start it and do not wait."""
        with self._state.changed() as state:
            postgres = state["postgres"]
            postgres["pid"] = _spawn(postgres, ["postgres", "-D", postgres["data"]])

    def wait_until_ready(self) -> None:
        """:raises ServicesError: if it ends, or does not answer within 90 s."""
        postgres = self._known
        has_is_ready = Userland.of(postgres).outside(Path(postgres["bin"]) / "pg_isready").exists()
        is_ready, options = _invocation(postgres, ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(postgres["port"])])
        lockfile = Path(postgres["data"]) / "postmaster.pid"

        def answers() -> bool:
            # The last line of the lock file comes first: it costs no process.
            with contextlib.suppress(OSError):
                if lockfile.read_text().rstrip().endswith("ready"):
                    return not has_is_ready or subprocess.run(is_ready, **options, check=False).returncode == 0  # noqa: S603
            return False

        until_answering("PostgreSQL", postgres["pid"], answers, Path(postgres["log"]), self._cancellation)

    def end(self, graceful: bool) -> None:
        """Cut all sessions and stop with a checkpoint, or as a crash ("immediate": recovery at the next start)."""
        process = self._known.get("pid")
        if not alive(process):
            return
        family = [process, *descendants(process["id"])]
        for each in family:
            send(each, signal.SIGCONT)
        steps = [(signal.SIGINT, FAST_SECONDS), (signal.SIGQUIT, IMMEDIATE_SECONDS)]
        for signum, seconds in steps if graceful else steps[1:]:
            send(process, signum)
            if gone([process], seconds):
                break
        kill(family + descendants(process["id"]))

    def discard(self) -> None:
        """End it at once, and initdb if that is still at work: the data is thrown away."""
        self.end(graceful=False)
        initdb = self._known.get("initdb")
        if alive(initdb):
            kill([*descendants(initdb["id"]), initdb])

    @property
    def _known(self) -> dict[str, Any]:
        known: dict[str, Any] = self._state.read()["postgres"]
        return known


def _spawn(postgres: dict[str, Any], command: list[str]) -> Process:
    invocation, options = _invocation(postgres, command)
    return spawn(invocation, Path(postgres["log"]), **options)


def _invocation(postgres: dict[str, Any], command: list[str]) -> tuple[list[str], dict[str, Any]]:
    """How one of its programs is started: at home, and never as root."""
    userland = Userland.of(postgres)
    program = [str(Path(postgres["bin"]) / command[0]), *command[1:]]
    invocation, options = userland.invocation(program, postgres["home"], postgres["owner"])
    return invocation, options | {"env": userland.environment() | {"HOME": postgres["home"]}}
