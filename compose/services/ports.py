"""TCP ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from pathlib import Path

PORT_TAKEN = re.compile("address already in use|eaddrinuse", re.IGNORECASE)
"""What servers say in their logs when someone else took a port between our choosing it and its use."""


def free_ports(count: int) -> list[int]:
    """Free ports, where possible from below the range the kernel takes outgoing connections from.

    A port inside of that range can be lost while a service restarts: to anyone's outgoing connection, even to a client
    that tries to reach the very port and meets itself.
    """
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        low = 0
    candidates = random.SystemRandom().sample(range(20_000, low), 200) if low >= 21_000 else []
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            trial = held.enter_context(socket.socket())
            try:
                trial.bind(("127.0.0.1", candidates.pop() if candidates else 0))
            except OSError:
                continue
            ports.append(int(trial.getsockname()[1]))
        return ports


def accepts(port: int) -> bool:
    """Whether someone takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
