"""Processes forked from one that has relmsg loaded: see ``fork_server``."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
LINE_BYTES = 1 << 24
# A forked process has taken the rest of what Python reads at its start from the server.
ADOPTED = frozenset({"PYTHONPATH", "PYTHONUNBUFFERED"})


class ForkedProcess:
    """The part of asyncio's ``Process`` that the tests use, of a process that is the server's child."""

    def __init__(
        self,
        process_id: int,
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        outputs: Sequence[asyncio.StreamReader],
    ) -> None:
        self.pid = process_id
        self.returncode: int | None = None
        self.stdout, self.stderr = outputs
        self._watch = asyncio.create_task(self._ended(*server))

    def send_signal(self, number: int) -> None:
        """:raises ProcessLookupError: if it is known to have ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    async def _ended(self, told: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            self.returncode = int(await told.readline() or -signal.SIGKILL)  # it dies with the server


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether this system can, and a process forked here is one that was started with this environment."""

    def read_at_start(variables: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in variables.items()
            if name.startswith(("PYTHON", "LC_", "LANG")) and name not in ADOPTED
        }

    return hasattr(os, "pidfd_open") and read_at_start(environment) == read_at_start(os.environ)


async def fork(command: Sequence[str], environment: Mapping[str, str]) -> ForkedProcess:
    """`relmsg …`, `python -m …` or `python -c …` in a process and session of its own, which dies with this one."""
    asked = {"arguments": list(command), "directory": str(Path.cwd()), "environment": dict(environment)}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_server())
    pipes = [os.pipe(), os.pipe()]
    try:
        socket.send_fds(connection, [b"\0"], [write for _, write in pipes])
    finally:
        for _, write in pipes:
            os.close(write)
    connection.sendall(json.dumps(asked).encode() + b"\n")
    outputs = [await _reader(read) for read, _ in pipes]
    reader, writer = await asyncio.open_connection(sock=connection)
    return ForkedProcess(int(await reader.readline()), (reader, writer), outputs)


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb"))
    return reader


@cache
def _server() -> str:
    """Start it, once in each of pytest's workers; it ends with the worker, whose stdin it has."""
    directory = tempfile.TemporaryDirectory(prefix="relmsg-fork-")
    address = str(Path(directory.name, "socket"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), str(number)],
            stdin=subprocess.PIPE,
            pass_fds=[number],
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("RELMSG_")},
        )

    @atexit.register
    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        with contextlib.suppress(OSError):
            directory.cleanup()

    return address
