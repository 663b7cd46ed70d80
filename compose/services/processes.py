"""Processes, told apart from later ones of the same id by the time of their birth."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

KILL_SECONDS = 5.0


class Process(TypedDict):
    """Names one process for good, in JSON too: whoever reads it from the state file means the same one."""

    id: int
    born: str | None  # None where there is no /proc


# What this very process has started: it must be waited for, or it stays in the table as a zombie.
_children: dict[tuple[int, str | None], subprocess.Popen[bytes]] = {}


@atexit.register
def _leave_behind() -> None:
    """A server that an attached process has restarted outlives it, and its owner ends it: Popen need not warn."""
    for child in _children.values():
        child.returncode = child.poll() or 0


def named(pid: int) -> Process:
    """The process that has this id now."""
    fields = _stat(pid)
    return {"id": pid, "born": fields[19] if fields else None}


def _private(path: str, flags: int) -> int:
    """Open a file that nobody else may read: a server's log may hold bodies, and passwords that were mistyped."""
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def spawn(command: Sequence[str], log: Path, **options: Any) -> Process:
    """Start a process that outlives Ctrl-C at our terminal. Its output is added to the log."""
    with open(log, "ab", opener=_private) as sink:
        child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    process = named(child.pid)
    _children[child.pid, process["born"]] = child
    return process


def exit_code(process: Process) -> int | None:
    """Of a process that was spawned here; None while it runs."""
    return _children[process["id"], process["born"]].poll()


def alive(process: Process | None) -> TypeGuard[Process]:
    """Whether this very process runs. A zombie does not."""
    if not process:
        return False
    pid, born = process["id"], process.get("born")
    if (pid, born) in _children:
        return _children[pid, born].poll() is None
    fields = _stat(pid)
    if fields is None:
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
    return fields[0] not in "ZX" and born in (None, fields[19])


def send(process: Process, signum: int) -> None:
    """Send a signal, unless the process has ended."""
    if alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["id"], signum)


def gone(processes: Sequence[Process], seconds: float) -> bool:
    """Wait until all have ended; False at the deadline."""
    deadline = time.monotonic() + seconds
    while any(alive(each) for each in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(processes: Sequence[Process]) -> None:
    """End all by SIGKILL and wait until they have."""
    for each in processes:
        send(each, signal.SIGKILL)
    gone(processes, KILL_SECONDS)


def descendants(pid: int) -> list[Process]:
    """The processes started by a process and by those, as far as /proc tells."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return [named(each) for each in found]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, or None where there is no such process (or no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
