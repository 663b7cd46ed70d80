"""The directory that holds all the data of one start, and goes away with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from compose.services.errors import ServicesError

ROOT = Path(__file__).resolve().parent.parent.parent


def make_directory(uid: int) -> Path:
    """A new one that this user can pass through: in .local/ of the checkout, else a temporary one."""
    for base in (ROOT / ".local", Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 (mkdtemp below)
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


def _passes(directory: Path, uid: int) -> bool:
    status = directory.stat()
    return bool(status.st_mode & (0o100 if status.st_uid == uid else 0o001))
