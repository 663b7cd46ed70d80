"""The end of everything that was started, and the process that brings it about when the owner no longer can.

    python -m compose.services.guard STATE_FILE

waits until its standard input is closed, which the kernel does even for an owner that was killed by SIGKILL.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from compose.services.directory import ROOT
from compose.services.mariadb import MariaDB
from compose.services.postgres import Postgres
from compose.services.rabbitmq import RabbitMQ
from compose.services.signals import ENDING
from compose.services.state import State
from compose.services.userland import Userland
from compose.services.waiting import Cancellation


class Guard:
    """The guard process of these services, seen from their owner."""

    def __init__(self, state: State) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-S", "-P", "-m", "compose.services.guard", str(state.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Let it go; what still runs it ends first."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def end_all(state: State) -> None:
    """End what runs now, whoever started it, and remove its data. Twice is fine."""
    if state.path is None or not state.path.exists():
        return
    known = state.read()
    directory = known["directory"]
    Postgres(state, Cancellation()).discard()
    RabbitMQ(state, Cancellation()).discard()
    MariaDB(state, Cancellation()).discard()
    for server in (known["postgres"], known["rabbitmq"]):
        Userland.of(server).forget(directory)
    shutil.rmtree(directory, ignore_errors=True)


def main(state_file: Path) -> None:
    """Wait for the owner's end; what it left running then, end."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(State(state_file))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
