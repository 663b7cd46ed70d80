"""The command itself: how it is started, what it loads, and what it logs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest

from compose.local import Services
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Process, Processes

MODULE = """
import asyncio, gc, logging, os, time

import aio_pika
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Inbox, Message

inbox = Inbox("billing", async_sessionmaker(create_async_engine(os.environ["RELMSG_DATABASE_URL"])))


running = set()


def leave(coroutine) -> None:
    # The event loop itself keeps no task: the collector may take one that has not failed yet.
    task = asyncio.create_task(coroutine)
    running.add(task)
    task.add_done_callback(running.discard)


async def boom() -> None:
    raise RuntimeError("nobody awaits me")


async def ask_a_queue_that_is_not_there() -> None:
    async with await aio_pika.connect(os.environ["RELMSG_AMQP_URL"]) as connection:
        channel = await connection.channel()
        await channel.get_queue("no.such.queue")


@inbox.handler("task", queue="billing.orders")
async def task(message: Message) -> None:
    leave(boom())


@inbox.handler("amqp", queue="billing.orders")
async def amqp(message: Message) -> None:
    leave(ask_a_queue_that_is_not_there())


@inbox.handler("callback", queue="billing.orders")
async def callback(message: Message) -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)


@inbox.handler("collect", queue="billing.orders")
async def collect(message: Message) -> None:
    gc.collect()


@inbox.handler("log", queue="billing.orders")
async def log(message: Message) -> None:
    logging.getLogger("shop").debug("in detail")
    try:
        raise ValueError("two\\nlines")
    except ValueError:
        logging.getLogger("shop").exception("it %s", "failed", extra={"order": 7})


@inbox.handler("slow", queue="billing.orders")
async def slow(message: Message) -> None:
    print("slow has begun", flush=True)
    await asyncio.sleep(600)


@inbox.handler("blocking", queue="billing.orders")
async def blocking(message: Message) -> None:
    print("blocking has begun", flush=True)
    time.sleep(600)
"""


@pytest.fixture
async def worker(processes: Processes, broker: Broker, tmp_path: Path) -> Process:
    """A consumer of the module above."""
    return await consuming(processes, broker, tmp_path)


async def consuming(processes: Processes, broker: Broker, tmp_path: Path, *flags: str) -> Process:
    await broker.queue("billing.orders")
    (tmp_path / "worker.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = await processes.relmsg("consume", "worker:inbox", *flags, PYTHONPATH=path, RELMSG_PROBES="")
    await process.line("consuming billing.orders as billing")
    return process


async def send(broker: Broker, type_: str) -> None:
    await broker.publish(b"{}", routing_key="billing.orders", message_type=type_, message_id=str(uuid4()))


async def said(process: Process, *words: str) -> None:
    async def all_of_them() -> None:
        assert all(word in process.stderr for word in words), process.stderr

    await eventually(all_of_them, within=20)


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        ("task", ("Task exception was never retrieved", "nobody awaits me")),
        ("amqp", ("Task exception was never retrieved", "no.such.queue")),
        ("callback", ("Exception in callback", "ZeroDivisionError")),
    ],
)
async def test_what_a_handler_leaves_behind_and_fails_is_logged(
    worker: Process, broker: Broker, type_: str, words: tuple[str, ...]
) -> None:
    """asyncio's word on a task or callback whose exception nobody took reaches the log, whatever the exception is."""
    await send(broker, type_)

    async def reported() -> None:
        # asyncio reports a failed task when the garbage collector takes it.
        await send(broker, "collect")
        assert all(word in worker.stderr for word in words), worker.stderr

    await eventually(reported, within=60)
    assert await worker.terminate() == 0


async def test_a_connection_that_is_lost_leaves_no_traceback_in_the_log(
    worker: Process, services: Services, amqp_url: str
) -> None:
    """What the AMQP library leaves behind on a lost connection is told in a sentence, and no more."""
    vhost = unquote(urlsplit(amqp_url).path[1:]) or "/"
    await asyncio.to_thread(services.rabbitmqctl, "close_all_connections", "--vhost", vhost, "test")
    await said(worker, "billing.orders")
    async with Broker(amqp_url) as broker:
        await send(broker, "log")
    await said(worker, "it failed")
    assert "never retrieved" not in worker.stderr
    assert await worker.terminate() == 0


async def test_json_logs_are_one_object_a_line(processes: Processes, broker: Broker, tmp_path: Path) -> None:
    """Every line of the log is a JSON object, also where an exception or a message has several lines."""
    worker = await consuming(processes, broker, tmp_path, "--log-format", "json", "--log-level", "DEBUG")
    await send(broker, "log")
    await said(worker, "it failed")
    assert await worker.terminate() == 0
    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    told = {line["message"]: line for line in lines if line["logger"] == "shop"}
    assert told["in detail"]["level"] == "debug"
    failed = told["it failed"]
    assert (failed["level"], failed["order"]) == ("error", 7)
    assert "ValueError: two\nlines" in failed["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", failed["time"])


@pytest.mark.parametrize("where", ["before the verb", "in the environment"])
async def test_the_level_of_the_log_is_chosen_in_three_places(
    processes: Processes, broker: Broker, tmp_path: Path, where: str
) -> None:
    """`--log-level` stands before the verb or behind it, or is a setting."""
    flags = ("--log-level", "error") if where == "before the verb" else ()
    variables = {} if flags else {"RELMSG_LOG_LEVEL": "error"}
    relay = await processes.relmsg(*flags, "relay", "--probes", "", **variables)
    await relay.line("relaying schema relmsg")
    assert await relay.terminate() == 0
    assert relay.stderr == ""


@pytest.mark.parametrize("flag", [("--log-level", "loud"), ("--log-format", "xml")])
async def test_a_wrong_level_or_format_is_told_by_name(processes: Processes, flag: tuple[str, str]) -> None:
    """What is no level and no format is wrong use, with the choices named."""
    relay = await processes.relmsg("relay", *flag)
    assert await relay.wait() == 2
    assert re.match(rf"relmsg: {flag[0]}: '{flag[1]}' is not .* or ", relay.stderr)


@pytest.mark.parametrize("type_", ["slow", "blocking"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_ends_a_consumer_at_once(
    worker: Process, broker: Broker, type_: str, number: signal.Signals
) -> None:
    """Whoever presses Ctrl-C twice waits for nothing, also where a handler blocks the event loop."""
    await send(broker, type_)
    await worker.line(f"{type_} has begun")
    worker.send(number)
    if type_ == "slow":
        await said(worker, "a second signal ends this process at once")
    else:
        await asyncio.sleep(0.2)  # two signals that arrive together are one
    worker.send(number)
    assert await asyncio.wait_for(worker.wait(), 5) == -number


async def test_the_library_loads_neither_alembic_nor_the_command_line(processes: Processes) -> None:
    """`import relmsg` costs a service only what it uses."""
    loaded = await processes.python(
        "-c", "import sys, relmsg; print(sorted({'alembic', 'typer', 'rich', 'relmsg.cli'} & set(sys.modules)))"
    )
    assert await loaded.wait() == 0, loaded.stderr
    assert loaded.stdout == "[]\n"


async def test_the_command_is_also_a_module(processes: Processes) -> None:
    """`python -m relmsg` is `relmsg`, for where that is not on the PATH."""
    version = await processes.python("-m", "relmsg", "--version")
    assert await version.wait() == 0, version.stderr
    assert version.stdout.startswith("relmsg ")
    wrong = await processes.python("-m", "relmsg", "rely")
    assert await wrong.wait() == 2
    assert wrong.stderr.startswith("relmsg: ")


async def test_a_shell_can_complete_the_command(processes: Processes, tmp_path: Path) -> None:
    """`--install-completion` teaches the user's shell the verbs."""
    installed = await processes.command(
        "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert await installed.wait(within=60) == 0, installed.stderr
    assert "relmsg" in (tmp_path / ".bashrc").read_text()
    completed = await processes.relmsg(_RELMSG_COMPLETE="complete_bash", COMP_WORDS="relmsg outb", COMP_CWORD="1")
    await completed.wait()
    assert completed.stdout.split() == ["outbox"]
