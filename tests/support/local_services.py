"""What a compose/local.py has started, seen from outside: its processes, where they listen, and that all are gone."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

from compose import local
from compose.services.processes import alive, descendants
from relmsg.testing import eventually

LOCAL = str(Path(local.__file__))


def running(processes):
    """Those of the processes that still run."""
    return [each for each in processes if alive(each)]


def services_of(process):
    """What a local.py has started so far, its guard too."""
    return descendants(process.pid)


def listening(*processes):
    """The addresses where they accept connections, as /proc writes them."""
    inodes = set()
    for process in processes:
        for link in Path(f"/proc/{process['id']}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
    found = []
    for table in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        found += [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]
    return found


def listens(url):
    """Whether someone accepts connections where the URL points to."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=5),
    ):
        return True
    return False


async def everything_is_gone(directory, processes):
    """Processes that nobody has to wait for may take a moment to leave the table."""

    def gone():
        assert running(processes) == []
        assert not directory.exists()

    await eventually(gone, within=20)
