"""Fixtures that several integration tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from compose.local import Services

Ran = tuple[int, str, str]


@pytest.fixture
async def limited(services: Services) -> AsyncIterator[Any]:
    """Sets the broker's max_message_size, for channels that are opened from then on."""

    async def limit(size: int) -> None:
        await asyncio.to_thread(
            services.evaluate,
            f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size})",
        )

    yield limit
    await limit(134_217_728)


@pytest.fixture
def relmsg(
    database_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Awaitable[Ran]]:
    """Runs a `relmsg` command in a thread of this process; its exit code, stdout and stderr.

    A process of its own takes a second longer: that is for tests of processes, and of what a terminal sees.
    """
    from relmsg.cli import main  # not above: the oldest Typer warns when it meets the newest Click

    monkeypatch.setenv("RELMSG_DATABASE_URL", database_url)
    monkeypatch.setenv("RELMSG_AMQP_URL", amqp_url)

    async def run(*arguments: object) -> Ran:
        code = await asyncio.to_thread(main.run, [str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run
