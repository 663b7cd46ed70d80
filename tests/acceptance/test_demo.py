"""The demo in small: `make demo` runs all of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from compose.local import Services

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "examples.flights.demo", "--flights", "1000"]


async def start(services: Services) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *DEMO,
        cwd=ROOT,
        env=os.environ | services.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_every_flight_takes_effect_once_while_relay_broker_and_consumer_fall(services: Services) -> None:
    """With the relay killed, the broker restarted and the consumer killed, every count of the demo is right."""
    demo = await start(services)
    async with asyncio.timeout(180):
        out = (await demo.communicate())[0].decode()
    assert demo.returncode == 0, out
    assert "relay killed (SIGKILL)" in out, out
    assert "consumer killed (SIGKILL)" in out, out
    assert ("broker is back" in out) == services.controlled, out
    assert "row by row" in out, out


async def test_a_demo_that_is_broken_off_leaves_nothing_running(services: Services) -> None:
    """After SIGINT the demo ends with 130, and so have all processes it had started."""
    demo = await start(services)
    assert demo.stdout is not None
    async with asyncio.timeout(60):
        while b"relay and consumer are running" not in (line := await demo.stdout.readline()):
            assert line, "the demo ended early"
        started = _children(demo.pid)
        assert len(started) >= 2
        demo.send_signal(signal.SIGINT)
        out = (await demo.communicate())[0].decode()
    assert demo.returncode == 130, out
    assert not [pid for pid in started if _is_alive(pid)]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
