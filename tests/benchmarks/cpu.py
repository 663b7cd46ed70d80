"""CPU time of process trees, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PARENT, USER, CHILDREN_SYSTEM = 1, 11, 14  # fields after the name: ppid; utime, stime, cutime, cstime


def tree_seconds(roots: Iterable[int]) -> float:
    """CPU seconds used so far by these processes, those below them, and those below that have ended and were reaped.

    Backends of PostgreSQL that have ended are among the last: the postmaster reaps them.
    """
    stats = _all()
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[PARENT]), []).append(pid)
    ticks, front = 0, [pid for pid in roots if pid in stats]
    while front:
        ticks += sum(int(each) for pid in front for each in stats[pid][USER : CHILDREN_SYSTEM + 1])
        front = [child for pid in front for child in children.get(pid, [])]
    return ticks / TICKS


def machine_seconds() -> float:
    """CPU seconds that all processes have used together."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


def memory_bytes(pid: int) -> int:
    """The resident memory of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _all() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
