"""A program that loads relmsg once and forks a process for each command or other program it is asked for.

Four fifths of the CPU of a short `relmsg …` are its imports, and the tests start hundreds of them. What is forked is a
process like any other: its own id and session, environment, output, signals and end. Who asks connects to the listening
socket this program was given and sends stdout and stderr, then one line of JSON: command line (`relmsg …`,
`python -m …` or `python -c …`), directory and environment. He reads two lines: the process id, and at its end the exit
code, negative after a signal. The program ends with its stdin.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path

import sqlalchemy.dialects.postgresql.asyncpg  # noqa: F401 (what the first engine would load)

from relmsg.cli import main as cli

SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


class Server:
    """Forks, and reports how each process has ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._running: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> list[str]:
        """Return in each forked process, with the arguments it is to run; in this one, never."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    os._exit(0)
                elif key.fd in self._running:
                    self._report(key.fd)
                elif (arguments := self._fork()) is not None:
                    return arguments

    def _fork(self) -> list[str] | None:
        asker, _ = self._listener.accept()
        _, outputs, _, _ = socket.recv_fds(asker, 1, 2)
        with asker.makefile("rb") as lines:
            asked = json.loads(lines.readline())
        process_id = os.fork()
        if process_id == 0:
            self._close()
            become(outputs, asked["directory"], asked["environment"])
            with asker:
                asker.sendall(b"%d\n" % os.getpid())
            arguments: list[str] = asked["arguments"]
            return arguments
        for output in outputs:
            os.close(output)
        handle = os.pidfd_open(process_id)
        self._running[handle] = process_id, asker
        self._selector.register(handle, selectors.EVENT_READ)
        return None

    def _report(self, handle: int) -> None:
        process_id, asker = self._running.pop(handle)
        self._selector.unregister(handle)
        os.close(handle)
        _, status = os.waitpid(process_id, 0)
        with asker, contextlib.suppress(OSError):  # the test may have gone
            asker.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))

    def _close(self) -> None:
        self._selector.close()
        self._listener.close()
        for handle, (_, asker) in self._running.items():
            os.close(handle)
            asker.close()


def become(outputs: list[int], directory: str, environment: dict[str, str]) -> None:
    """Make this process what a newly started one would be."""
    os.setsid()
    os.chdir(directory)
    libc.prctl(SET_PDEATHSIG, signal.SIGKILL)
    for output, number in zip([os.open(os.devnull, os.O_RDONLY), *outputs], (0, 1, 2), strict=True):
        os.dup2(output, number)
        os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [entry for entry in path if entry and entry not in sys.path]
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = text_stream(1, unbuffered)
    sys.stderr = sys.__stderr__ = text_stream(2, unbuffered, errors="backslashreplace", line_buffering=True)


def text_stream(
    number: int, unbuffered: bool, *, errors: str | None = None, line_buffering: bool = False
) -> io.TextIOWrapper:
    """An output stream as Python makes it at its start."""
    raw = io.FileIO(number, "w", closefd=False)
    # A buffer of no size is what Python too has below an unbuffered stream.
    binary = raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        binary,  # type: ignore[type-var, unused-ignore]
        encoding=sys.stdout.encoding,
        errors=errors or sys.stdout.errors,
        line_buffering=line_buffering,
        write_through=unbuffered,
    )


def run(command: str, *arguments: str) -> None:
    """Run `relmsg …`, `python -m …` or `python -c …` as if Python had been started for it."""
    if command == "relmsg":
        sys.argv = [command, *arguments]
        cli.main()
        return
    kind, program, *rest = arguments
    sys.argv = [kind, *rest]
    sys.path.insert(0, str(Path.cwd()) if kind == "-m" else "")
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), vars(sys.modules["__main__"]))


if __name__ == "__main__":
    cli._command()
    gc.freeze()  # what is loaded stays shared
    run(*Server(socket.socket(fileno=int(sys.argv[1]))).serve())
