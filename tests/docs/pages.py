"""A page of documentation as a program: its python and bash blocks, run in their order."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import signal
import sys
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

ROOT = Path(__file__).resolve().parents[2]
RUN = ("python", "bash")
NOT_RUN = re.compile(r"<!--\s*not run:(?P<reason>.*?)-->")
FILE = re.compile(r"#\s*(?P<name>[\w/]+\.py)\s*\n")
BASH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``reason`` says why it is not run; None if it is."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The python and bash blocks of a page; the comment that excuses one stands on the line directly above it."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    position = 0
    while position < len(lines):
        fence = re.fullmatch(r"(?P<indent>\s*)```(?P<language>\w*)\s*", lines[position])
        if fence is None:
            position += 1
            continue
        end = next(at for at in range(position + 1, len(lines)) if lines[at].strip() == "```")
        if fence["language"] in RUN:
            excuse = NOT_RUN.search(lines[position - 1]) if position else None
            cut = len(fence["indent"])
            code = "".join(line[cut:] + "\n" for line in lines[position + 1 : end])
            found.append(Block(fence["language"], code, position + 2, excuse["reason"].strip() if excuse else None))
        position = end + 1
    return found


class PageFailed(AssertionError):
    """A block did not work as it stands; says where in the page."""


class Run:
    """One page, run in a directory and a namespace of its own; nothing it started outlives the ``async with``.

    Python blocks share a namespace and may await. One that begins with ``# name.py`` is also written to that file, so
    that the bash blocks can name it. A bash block may leave processes behind with ``&``.
    """

    def __init__(self, page: Path, directory: Path, environment: dict[str, str]) -> None:
        self.page = page
        self.directory = directory
        self._environment = environment
        self._module = types.ModuleType("page_" + re.sub(r"\W", "_", page.stem))
        self._sessions: list[int] = []

    async def __aenter__(self) -> Run:
        sys.modules[self._module.__name__] = self._module  # dataclasses look their module up
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions:
            with suppress(ProcessLookupError):
                os.killpg(session, signal.SIGKILL)
        for value in list(vars(self._module).values()):
            if isinstance(value, async_sessionmaker):
                value = value.kw.get("bind")
            if isinstance(value, AsyncEngine):
                await value.dispose()
        del sys.modules[self._module.__name__]

    async def block(self, block: Block) -> None:
        """Run one block. :raises PageFailed: it does not work."""
        where = f"{self.page.relative_to(ROOT)}:{block.line}"
        try:
            await (self._python(block, where) if block.language == "python" else self._bash(block, where))
        except PageFailed:
            raise
        except Exception as error:
            raise PageFailed(f"{where}: {type(error).__name__}: {error}") from error

    async def _python(self, block: Block, where: str) -> None:
        if named := FILE.match(block.code):
            path = self.directory / named["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
        tree = ast.parse("\n" * (block.line - 1) + block.code, filename=str(self.page))
        code = compile(tree, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result: Any = eval(code, vars(self._module))
        if inspect.iscoroutine(result):
            await result

    async def _bash(self, block: Block, where: str) -> None:
        output = self.directory / f"bash-{block.line}.out"
        with output.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                "bash",
                "-euo",
                "pipefail",
                "-c",
                block.code,
                cwd=self.directory,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self._sessions.append(process.pid)
        try:
            async with asyncio.timeout(BASH_SECONDS):
                code = await process.wait()
        except TimeoutError:
            raise PageFailed(f"{where}: no end after {BASH_SECONDS:g} s\n{output.read_text()}") from None
        if code != 0:
            raise PageFailed(f"{where}: exit code {code}\n{output.read_text()}")
