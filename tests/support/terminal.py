"""A command on a terminal of a given width, as a person sees it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Seen:
    """What stood on the terminal in the end: the exit code, the lines without styles, and all that was written."""

    code: int
    lines: list[str]
    written: str


async def seen(
    *arguments: str, columns: int = 80, within: float = 60.0, answer: str | None = None, **variables: str
) -> Seen:
    """Run ``relmsg ARGUMENTS`` with stdin, stdout and stderr on a terminal of so many columns.

    ``answer`` is typed as soon as something was written. The process has ended when this returns or raises.
    """
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RELMSG_", "COLUMNS", "LINES"))}
    script = Path(sys.executable).with_name("relmsg")
    process = await asyncio.create_subprocess_exec(
        *(str(script), *arguments),
        env=kept | {"TERM": "xterm-256color"} | variables,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    reading = asyncio.create_task(asyncio.to_thread(_read, outer, answer))
    try:
        async with asyncio.timeout(within):
            written = (await reading).decode(errors="replace")
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.wait([reading])
        os.close(outer)
    plain = STYLES.sub("", written).replace("\r\n", "\n")
    return Seen(code, [line.rsplit("\r", 1)[-1] for line in plain.splitlines()], written)


def _read(terminal: int, answer: str | None) -> bytes:
    """All that is written until the last process that has the terminal is gone; Linux tells that by an error."""
    written = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            written += part
            if answer is not None:
                os.write(terminal, answer.encode() + b"\n")
                answer = None
    return written
