"""The bar of a long command: after a second, on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import sys
from contextlib import suppress

import pytest

from relmsg.cli import progress


class Clock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def shown(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float, *, terminal: bool) -> str:
    """What stands on stderr of a command that has done 3 of 4 after so many seconds."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    with os.fdopen(writer, "w") as stderr:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress.bar(clock) as bar:
            add = bar.counter("requeued", 4)
            add(1)
            clock.now += seconds
            add(2)
        stderr.write("the end")
        stderr.flush()
        monkeypatch.undo()
    written = b""
    with suppress(OSError):  # Linux tells the end of a terminal by an error
        while part := os.read(reader, 65536):
            written += part
    os.close(reader)
    return written.decode()


def test_a_bar_tells_the_share_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longer than a second shows on a terminal what is done and how much of it."""
    written = shown(monkeypatch, Clock(), 1.5, terminal=True)
    assert "requeued" in written
    assert "75%" in written


def test_what_is_quick_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the first second nothing is written to the terminal."""
    assert shown(monkeypatch, Clock(), 0.9, terminal=True) == "the end"


def test_a_pipe_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads stderr reads no bar, however long it takes."""
    assert shown(monkeypatch, Clock(), 60.0, terminal=False) == "the end"
