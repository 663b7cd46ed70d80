"""The directory that holds all the data of one start, and goes away with it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compose.services.errors import ServicesError

ROOT = Path(__file__).resolve().parent.parent.parent


MEMORY = Path("/dev/shm")  # noqa: S108 (mkdtemp below)
LEAST_BYTES = 4 * 1024**3
"""What must be free for data in memory: two pairs of services that run the whole suite took less than half of it."""


def make_directory(uid: int, *, in_memory: bool = False) -> Path:
    """A new one that this user can pass through: in .local/ of the checkout, else a temporary one.

    ``in_memory``: in a file system in memory, if there is one with 4 GiB to spare.
    """
    for base in _bases(in_memory):
        try:
            base.mkdir(exist_ok=True)
            passable = all(_passes(parent, uid) for parent in (base, *base.parents))
            if passable and os.access(base, os.W_OK):
                directory = Path(tempfile.mkdtemp(prefix="relmsg-", dir=base))
                directory.chmod(0o711)
                return directory
        except OSError:
            continue
    raise ServicesError(f"no directory for the services' data: neither {ROOT / '.local'} nor a temporary one will do")


def is_in_memory(directory: Path) -> bool:
    """Whether a directory made here is in memory."""
    return directory.parent == MEMORY


def _bases(in_memory: bool) -> Iterator[Path]:
    if in_memory and _room() >= LEAST_BYTES:
        yield MEMORY
    yield from (ROOT / ".local", Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108


def _room() -> int:
    """How much the file system in memory can take; it may be larger than the memory that is left."""
    try:
        left = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return min(shutil.disk_usage(MEMORY).free, int(left[1]) * 1024 if left else 0)
    except OSError:
        return 0


def _passes(directory: Path, uid: int) -> bool:
    status = directory.stat()
    return bool(status.st_mode & (0o100 if status.st_uid == uid else 0o001))
