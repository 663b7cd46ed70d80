"""Real child processes: started, listened to, killed, and always reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tests.support.forked import ForkedProcess, can_fork, fork


class Process:
    """One child process whose stdout and stderr are read line by line as they come."""

    def __init__(self, process: asyncio.subprocess.Process | ForkedProcess, name: str) -> None:
        self._process = process
        self._name = name
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = asyncio.Condition()
        assert process.stdout is not None
        assert process.stderr is not None
        self._pumps = [
            asyncio.create_task(self._pump(process.stdout, self.out)),
            asyncio.create_task(self._pump(process.stderr, self.err)),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; -9 after SIGKILL."""
        return self._process.returncode

    @property
    def stdout(self) -> str:
        return "".join(self.out)

    @property
    def stderr(self) -> str:
        return "".join(self.err)

    def send(self, signum: int) -> None:
        """Send a signal; to a process that has ended, nothing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    async def line(self, pattern: str, *, within: float = 20.0) -> re.Match[str]:
        """The match of the first line, of stdout or stderr, that matches ``pattern`` anywhere; also one already read.

        :raises AssertionError: at the deadline, or when the process ends without such a line; with all its output.
        """
        found: re.Match[str] | None = None

        def matches() -> bool:
            nonlocal found
            found = next((match for line in [*self.out, *self.err] if (match := re.search(pattern, line))), None)
            return found is not None

        await self.until(matches, within=within, what=f"a line matching {pattern!r}")
        assert found is not None
        return found

    async def until(self, holds: Callable[[], bool], *, within: float = 20.0, what: str = "it to hold") -> None:
        """Wait until ``holds()``; it is asked at each line of output and at the end of the process.

        :raises AssertionError: at the deadline, or when the process has ended and it does not hold.
        """
        try:
            async with asyncio.timeout(within), self._news:
                while not holds():
                    ended = all(pump.done() for pump in self._pumps)
                    assert not ended, f"{self._name} ended while we waited for {what}\n{self._said()}"
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{self._name}: {what} did not come within {within:g} s\n{self._said()}") from None

    async def wait(self, *, within: float = 20.0) -> int:
        """The exit code, after everything it wrote has been read. :raises AssertionError: at the deadline."""
        try:
            async with asyncio.timeout(within):
                code = await self._ended()
        except TimeoutError:
            raise AssertionError(f"{self._name} is still running after {within:g} s\n{self._said()}") from None
        # A grandchild that holds the pipes open must not hold us up.
        await asyncio.wait(self._pumps, timeout=1.0)
        return code

    async def kill(self) -> int:
        """SIGKILL, also to a stopped process, and reap it."""
        self.send(signal.SIGKILL)
        return await self.wait()

    async def terminate(self, *, within: float = 20.0) -> int:
        """SIGTERM, and the exit code. :raises AssertionError: if it has not ended in time."""
        self.send(signal.SIGTERM)
        return await self.wait(within=within)

    async def reap(self) -> None:
        """Leave nothing behind: neither a process of its group, nor a pipe, nor a task."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it began a session: its id is its group's, while any member lives
        async with asyncio.timeout(10.0):
            await self._ended()
        await asyncio.wait(self._pumps, timeout=1.0)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _ended(self) -> int:
        # Not Process.wait(): that may wait for the pipes too, which a grandchild can hold open for ever.
        while self._process.returncode is None:  # noqa: ASYNC110 (asyncio tells it by no event)
            await asyncio.sleep(0.005)
        return self._process.returncode

    async def _pump(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode(errors="replace"))
            async with self._news:
                self._news.notify_all()
        # Shielded by a task of its own, so that a waiter sees this pump as done.
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._announce()))

    async def _announce(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _said(self) -> str:
        return f"--- stdout\n{self.stdout}--- stderr\n{self.stderr}---"


class Processes:
    """Starts child processes and, at the latest when it is left, has killed and reaped every one of them.

    They die with us even if we are killed, where setpriv can ask the kernel for that.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment or {})
        self._started: list[Process] = []

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._started:
            await process.reap()

    async def relmsg(self, *arguments: str, **variables: str) -> Process:
        """``relmsg ARGUMENTS``, with the session's URLs and then ``variables`` as its RELMSG_ environment.

        It is forked from a process that has relmsg loaded, where that makes no difference to it.
        """
        return await self._fork("relmsg", *arguments, **variables) or await self.command(*arguments, **variables)

    async def python_with_relmsg(self, *arguments: str, **variables: str) -> Process:
        """``python -m …`` or ``python -c …`` in the same environment, forked likewise: for what uses relmsg."""
        return await self._fork("python", *arguments, **variables) or await self.python(*arguments, **variables)

    async def command(self, *arguments: str, **variables: str) -> Process:
        """The installed command ``relmsg ARGUMENTS``, started as a shell would."""
        script = Path(sys.executable).with_name("relmsg")
        command = [str(script)] if script.exists() else [sys.executable, "-m", "relmsg.cli.main"]
        return await self.start(*command, *arguments, **variables)

    async def python(self, *arguments: str, **variables: str) -> Process:
        """``python ARGUMENTS`` with this interpreter, in the same environment."""
        return await self.start(sys.executable, *arguments, **variables)

    async def start(self, *command: str, **variables: str) -> Process:
        """Any program, in the same environment: none of the RELMSG_ variables around us, and output not held back."""
        setpriv = shutil.which("setpriv")
        guarded = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        child = await asyncio.create_subprocess_exec(
            *guarded,
            *command,
            env=self._environment_with(variables),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
            start_new_session=True,  # Ctrl-C at our terminal is not theirs
        )
        process = Process(child, " ".join(map(str, command)))
        self._started.append(process)
        return process

    async def _fork(self, *command: str, **variables: str) -> Process | None:
        environment = self._environment_with(variables)
        if not can_fork(environment):
            return None
        process = Process(await fork(command, environment), " ".join(command))
        self._started.append(process)
        return process

    def _environment_with(self, variables: Mapping[str, str]) -> dict[str, str]:
        around = {name: value for name, value in os.environ.items() if not name.startswith("RELMSG_")}
        return around | {"PYTHONUNBUFFERED": "1"} | self._environment | dict(variables)
