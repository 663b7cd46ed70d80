"""The private MariaDB, which only a few tests need: nothing of it is there before it is asked for."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from compose.services import programs
from compose.services.errors import ServicesError
from compose.services.installing import MariaDBPrograms
from compose.services.ports import PORT_TAKEN, free_ports
from compose.services.processes import Process, alive, descendants, kill, send, spawn
from compose.services.progress import Report
from compose.services.state import State
from compose.services.userland import HERE
from compose.services.waiting import Cancellation, until_answering, until_done

USER = "relmsg"
DATABASE = "relmsg"
PROTOCOL = 10  # of the greeting that each client gets
START_ATTEMPTS = 3


def account() -> list[int] | None:
    """User and group id that MariaDB runs as if we are root, whom it refuses; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    owner = HERE.owner("mysql", "nobody")
    if owner is None:
        raise ServicesError("MariaDB refuses to run as root, and there is no user mysql or nobody")
    return owner


class MariaDB:
    """The MariaDB of a state file: whoever obtains it first makes and starts it."""

    def __init__(self, state: State, cancellation: Cancellation) -> None:
        self._state = state
        self._cancellation = cancellation

    def obtain(self, report: Report) -> str:
        """Its URL, with the right to make databases; of many who ask at once, one starts it and the others wait.

        :raises ServicesError: if it is missing and cannot be had, or does not answer within 90 s.
        """
        directory = Path(self._state.read()["directory"])
        with (directory / "mariadb.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not alive(self._known.get("pid")):
                found = programs.find_mariadb(report)
                for attempt in range(1, START_ATTEMPTS + 1):
                    try:
                        report("starting MariaDB")
                        self._prepare(directory / "mariadb", found)
                        self._launch()
                        break
                    except BaseException as error:
                        self.discard()
                        shutil.rmtree(directory / "mariadb", ignore_errors=True)
                        if attempt == START_ATTEMPTS or not PORT_TAKEN.search(str(error)):
                            raise
            return str(self._known["url"])

    def _prepare(self, home: Path, found: MariaDBPrograms) -> None:
        """Make an empty server there, with a port and a password of its own."""
        owner = account()
        home.mkdir(mode=0o700)
        password = secrets.token_hex(16)
        first_words = home / "init.sql"
        first_words.touch(mode=0o600)
        first_words.write_text(
            f"CREATE DATABASE IF NOT EXISTS {DATABASE};\n"
            f"CREATE OR REPLACE USER {USER}@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO {USER}@'127.0.0.1';\n"
        )
        if owner:
            for path in (home, first_words):
                os.chown(path, *owner)
        port = free_ports(1)[0]
        mariadb: dict[str, Any] = {
            "owner": owner, "home": str(home), "log": f"{home}.log", "port": port, "server": str(found.server),
            "url": f"mariadb+aiomysql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}",
        }  # fmt: skip
        # Whoever else has an account on this machine gets in by none: root is let in by the socket alone, which is in
        # our home, and only if it is the system's root. --force: a machine whose name leads nowhere will do.
        install = [
            str(found.install), "--no-defaults", f"--datadir={home / 'data'}", "--skip-test-db", "--force",
            "--auth-root-authentication-method=socket", "--auth-root-socket-user=root",
            "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0",
        ]  # fmt: skip
        with self._state.changed() as state:
            mariadb["install"] = _spawn(mariadb, install)
            state["mariadb"] = mariadb
        until_done("mariadb-install-db", mariadb["install"], Path(mariadb["log"]), self._cancellation)

    def _launch(self) -> None:
        """Start it and return when it answers."""
        with self._state.changed() as state:
            mariadb = state["mariadb"]
            home = Path(mariadb["home"])
            # The socket is named relative to the data, where MariaDB goes first: a path could be too long for it.
            mariadb["pid"] = _spawn(mariadb, [
                mariadb["server"], "--no-defaults", f"--datadir={home / 'data'}", f"--init-file={home / 'init.sql'}",
                "--bind-address=127.0.0.1", f"--port={mariadb['port']}", "--socket=mariadb.sock",
                f"--pid-file={home / 'pid'}", "--skip-name-resolve", "--skip-log-bin", "--character-set-server=utf8mb4",
                "--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=1",
                "--loose-innodb-snapshot-isolation=OFF",  # its default depends on the version
            ])  # fmt: skip
        # It greets nobody before it has executed its first words.
        until_answering(
            "MariaDB", mariadb["pid"], lambda: _greets(mariadb["port"]), Path(mariadb["log"]), self._cancellation
        )

    def discard(self) -> None:
        """End it, and mariadb-install-db if that is still at work: the data is thrown away."""
        for process in (self._known.get("pid"), self._known.get("install")):
            if alive(process):
                family = [process, *descendants(process["id"])]
                for each in family:
                    send(each, signal.SIGCONT)
                kill(family)

    @property
    def _known(self) -> dict[str, Any]:
        known: dict[str, Any] = self._state.read()["mariadb"]
        return known


def _spawn(mariadb: dict[str, Any], command: list[str]) -> Process:
    invocation, options = HERE.invocation(command, mariadb["home"], mariadb["owner"])
    environment = HERE.environment() | {"HOME": mariadb["home"]}
    return spawn(invocation, Path(mariadb["log"]), **options, env=environment)


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as peer:
            greeting = peer.recv(5)
    except OSError:
        return False
    return len(greeting) == 5 and greeting[4] == PROTOCOL
