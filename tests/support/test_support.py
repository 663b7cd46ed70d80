"""The tests' own tools do what the tests believe of them."""

from __future__ import annotations

import asyncio
import os
import signal
from importlib import metadata
from pathlib import Path

import pytest

from relmsg.testing import eventually
from tests.support.processes import Processes
from tests.support.proxy import Mode, Proxy


@pytest.fixture
async def echo():
    """The port of a server that sends back what it gets."""

    async def answer(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def proxy(echo):
    """A proxy before it."""
    async with Proxy("127.0.0.1", echo) as proxy:
        yield proxy


@pytest.fixture
async def peer(proxy):
    """A connection through the proxy, over which an echo has come back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    yield reader, writer
    writer.transport.abort()


async def silent(reader):
    """Whether nothing comes for a moment: the absence of bytes has no signal to wait for."""
    try:
        async with asyncio.timeout(0.2):
            return not await reader.read(1)
    except TimeoutError:
        return True


async def test_a_black_hole_holds_bytes_back_until_it_is_healed(proxy, peer):
    """Nobody is told, and after healing everything arrives."""
    reader, writer = peer
    proxy.blackhole()
    writer.write(b"held")
    assert await silent(reader)
    proxy.heal()
    assert await reader.readexactly(4) == b"held"


async def test_drop_loses_one_direction_only(proxy, peer):
    """The server gets the bytes, its answer is lost, later answers come."""
    reader, writer = peer
    proxy.to_client.mode = Mode.DROP
    writer.write(b"lost")
    await eventually(lambda: _equal(proxy.to_server.passed, 9))
    assert await silent(reader)
    proxy.heal()
    writer.write(b"back")
    assert await reader.readexactly(4) == b"back"


async def test_reset_is_a_connection_reset(proxy, peer):
    """The peer sees a RST, no orderly end."""
    reader, _ = peer
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read()


@pytest.mark.parametrize("count", [0, 3])
async def test_cut_lets_exactly_so_many_bytes_arrive(proxy, peer, count):
    """Then the connection is at its end; the next one is whole."""
    reader, writer = peer
    proxy.to_client.cut_after(count)
    writer.write(b"abcdef")
    assert await reader.read() == b"abcdef"[:count]
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.transport.abort()


async def test_refuse_and_accept(proxy, peer):
    """New connections are refused, those there are go on; the port stays the same."""
    reader, writer = peer
    port = proxy.port
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    await proxy.accept()
    assert proxy.port == port
    _, second = await asyncio.open_connection("127.0.0.1", port)
    second.transport.abort()


async def test_a_line_is_found_and_a_missing_one_shows_what_was_said():
    """The output stands in the error, also when the process has ended."""
    async with Processes() as processes:
        process = await processes.python("-c", "import sys; print('port 17'); print('oh', file=sys.stderr)")
        assert (await process.line(r"port (\d+)"))[1] == "17"
        with pytest.raises(AssertionError, match=r"ended while we waited for a line matching 'never'\n(.|\n)*oh"):
            await process.line("never")
        assert await process.wait() == 0
        assert (process.stdout, process.stderr) == ("port 17\n", "oh\n")


async def test_every_process_is_reaped_even_a_stopped_one():
    """Leaving the block kills what is left, and the children of it."""
    script = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    )
    async with Processes() as processes:
        process = await processes.python("-c", script)
        child = int((await process.line(r"^(\d+)$"))[1])
        process.send(signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL
    await eventually(lambda: _equal(_state(child), None))


@pytest.mark.parametrize("start", [Processes.relmsg, Processes.command])
async def test_a_forked_command_is_a_process_like_a_started_one(start):
    """Exit code, both outputs, environment, session and death by a signal are the same."""
    nowhere = {"RELMSG_DATABASE_URL": "postgresql://127.0.0.1:1/x", "RELMSG_AMQP_URL": "amqp://127.0.0.1:1"}
    async with Processes() as processes:
        version = await start(processes, "--version")
        assert await version.wait(within=60) == 0
        assert (version.stdout, version.stderr) == (f"relmsg {metadata.version('relmsg')}\n", "")
        wrong = await start(processes, "relay", RELMSG_BATCH="none", **nowhere)
        assert await wrong.wait(within=60) == 2
        assert (wrong.stdout, "RELMSG_BATCH" in wrong.stderr) == ("", True)
        waiting = await start(processes, "relay", RELMSG_PROBES="", **nowhere)
        await waiting.line("127.0.0.1:1", within=60)
        assert os.getsid(waiting.pid) == waiting.pid
        assert await waiting.kill() == -signal.SIGKILL


@pytest.mark.parametrize("start", [Processes.python_with_relmsg, Processes.python])
async def test_a_forked_program_finds_what_a_started_one_finds(start, tmp_path, monkeypatch):
    """Its arguments, its directory, modules on its path, and itself as the main module."""
    (tmp_path / "program.py").write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "class Here: pass\n"
        "print(__name__, sys.argv[1:], os.environ['WORD'], Path.cwd(), hasattr(sys.modules['__main__'], 'Here'))\n"
    )
    monkeypatch.chdir(tmp_path)
    code = "import sys, program; print(__name__, sys.argv)"
    async with Processes() as processes:
        module = await start(processes, "-m", "program", "a", "b c", WORD="w")
        assert await module.wait(within=60) == 0, module.stderr
        assert module.stdout == f"__main__ ['a', 'b c'] w {tmp_path} True\n"
        text = await start(processes, "-c", code, "a", WORD="w", PYTHONPATH=str(tmp_path))
        assert await text.wait(within=60) == 0, text.stderr
        assert text.stdout == f"program ['a'] w {tmp_path} False\n__main__ ['-c', 'a']\n"
        failing = await start(processes, "-c", "raise SystemExit(7)")
        assert await failing.wait(within=60) == 7


async def test_forked_processes_die_with_who_asked_for_them():
    """Even if that was killed and could end nothing."""
    script = """
import asyncio, sys
from tests.support.processes import Processes

async def main():
    async with Processes() as processes:
        relay = await processes.relmsg("relay", RELMSG_PROBES="", RELMSG_DATABASE_URL="postgresql://127.0.0.1:1/x",
                                       RELMSG_AMQP_URL="amqp://127.0.0.1:1")
        await relay.line("127.0.0.1:1", within=60)
        print(relay.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    async with Processes() as processes:
        tests = await processes.python("-c", script, PYTHONPATH=str(Path(__file__).parents[2]))
        relay = int((await tests.line(r"^(\d+)$", within=90))[1])
        assert _state(relay) is not None
        await tests.kill()
        await eventually(lambda: _equal(_state(relay), None), within=20)


def _equal(left, right):
    assert left == right


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            state = stat.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
    return None if state == "Z" else state


async def test_eventually_returns_what_the_assertion_returned():
    """As soon as it holds, whether it is a function or a coroutine function."""
    calls = []

    async def third():
        calls.append(1)
        assert len(calls) == 3
        return "value"

    assert await eventually(third, every=0.001) == "value"
    assert await eventually(lambda: 5) == 5


async def test_eventually_raises_the_last_error_at_the_deadline():
    """And an assertion that hangs is ended too; another exception is passed on at once."""
    with pytest.raises(AssertionError, match=r"1 == 2"):
        await eventually(lambda: _equal(1, 2), within=0.05)
    with pytest.raises(AssertionError, match=r"did not come to an end within 0\.05 s"):
        await eventually(asyncio.Event().wait, within=0.05)
    with pytest.raises(ZeroDivisionError):
        await eventually(lambda: 1 / 0, within=60)
    calls = []
    with pytest.raises(AssertionError):
        await eventually(lambda: calls.append(1) or _equal(1, 2), within=0)
    assert len(calls) == 1
