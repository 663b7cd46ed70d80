"""A contender's process, as the suite sees it: "ready" on its stdout, "go" on its stdin, one JSON line at the end.

Connecting and importing come before "ready" and are not measured. The program stays until its stdin is closed, so that
its CPU time can still be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.benchmarks.bench import Bench
from tests.benchmarks.model import CheckFailed, Sample

ROOT = Path(__file__).resolve().parent.parent.parent
READY_SECONDS, RUN_SECONDS, END_SECONDS = 60.0, 300.0, 15.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def python(module: str, *arguments: object) -> list[str]:
    """The command of a contender written in Python: ``python("relay_naive", 20)``."""
    return [sys.executable, "-m", f"tests.benchmarks.contenders.{module}", *map(str, arguments)]


class Program:
    """A process that is ended when the block is left, however it is left."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str]) -> None:
        self._command = [str(each) for each in command]
        self._environment = environment

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(self._environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=_die_with_parent,
        )
        self._errors: list[str] = []
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    @property
    def name(self) -> str:
        """Short, for errors."""
        return " ".join(self._command[2:] if self._command[1:2] == ["-m"] else self._command[:2])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        return "\n".join(self._errors[-15:])

    async def line(self, within: float) -> str:
        """The next line of its stdout. :raises CheckFailed: if it ends, or says nothing in time."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise CheckFailed(f"no word from {self.name} within {within:g} s\n{self.said()}") from None
        if not line:
            await asyncio.wait([self._listening], timeout=1.0)
            raise CheckFailed(f"{self.name} ended\n{self.said()}")
        return line.decode().strip()

    async def ready(self, within: float = READY_SECONDS) -> None:
        """Wait until it says so."""
        if (line := await self.line(within)) != "ready":
            raise CheckFailed(f"{self.name} said {line!r} instead of ready")

    async def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        await self._process.stdin.drain()

    async def result(self, within: float = RUN_SECONDS) -> dict[str, Any]:
        """Its last line: what it measured."""
        result: dict[str, Any] = json.loads(await self.line(within))
        return result

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._errors.append(line.decode(errors="replace").rstrip())
            del self._errors[:-100]


async def run_program(bench: Bench, command: Sequence[object], messages: int, within: float = RUN_SECONDS) -> Sample:
    """Run a contender from "go" to its JSON line, and say what it took. It names its ``seconds``; what else it says
    are the sample's figures. Making things ready before and checking them afterwards is the caller's.
    """
    async with Program(command, bench.environment) as program:
        await program.ready()
        before = bench.cpu([program.pid])
        await program.go()
        result = await program.result(within)
        cpu = bench.cpu([program.pid]).since(before, messages)
    return Sample(messages, float(result.pop("seconds")), cpu, {name: float(value) for name, value in result.items()})


def _die_with_parent() -> None:
    """A relay whose suite was killed would wait for its services for ever."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
