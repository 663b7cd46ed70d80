"""compose/local.py stops exactly what it started, however it ends, and starts nothing it was not asked for."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from compose.local import Services, ServicesError
from compose.services import directory
from compose.services.directory import ROOT
from compose.services.postgres import Postgres
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.local_services import LOCAL, everything_is_gone, listening, listens, running, services_of
from tests.support.processes import Processes

TELL = "import os; print('state', os.environ.get('RELMSG_LOCAL_STATE'), flush=True); "
# Not signal.pause(): a signal that comes just before it is told to Python only after it, which is never.
WAIT = "import time; [time.sleep(0.05) for _ in iter(int, 1)]"


@pytest.fixture
async def children():
    """Starts real processes without any RELMSG_ variable."""
    async with Processes() as processes:
        yield processes


@pytest.fixture(scope="module")
def private():
    """Services of this module's own, to be stopped and killed at will."""
    with Services() as services:
        services.start()
        yield services


def name_of(process):
    """The program's name; empty if it has just ended."""
    try:
        return Path(f"/proc/{process['id']}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def started(process, directory_of=lambda match: Path(match[1]).parent):
    """The directory of services whose child has told where their state is, and all their processes."""
    directory = directory_of(await process.line("^state (/.*)", within=100))
    assert (directory / "state.json").exists()
    return directory, services_of(process)


async def test_run_gives_a_command_both_urls_and_ends_as_it_ends(children):
    """The command finds both services answering, its exit code is local.py's, and nothing is left."""
    script = (
        "import asyncio, asyncpg, aiormq, os, sys\n"
        "async def main():\n"
        "    url = os.environ['RELMSG_DATABASE_URL'].replace('+asyncpg', '')\n"
        "    print('database', await (await asyncpg.connect(url)).fetchval('SELECT 41 + 1'))\n"
        "    print('broker', (await aiormq.connect(os.environ['RELMSG_AMQP_URL'])).server_properties['product'])\n"
        "    print('state', os.environ['RELMSG_LOCAL_STATE'])\n"
        "    print(open(os.environ['RELMSG_LOCAL_STATE']).read().replace(chr(10), ''))\n"
        "    os._exit(7)\n"
        "asyncio.run(main())"
    )
    process = await children.python(LOCAL, "run", "--", sys.executable, "-c", script)
    assert await process.wait(within=120) == 7
    assert "database 42" in process.stdout
    assert "broker RabbitMQ" in process.stdout
    state = json.loads(process.out[-1])
    pids = [state["postgres"]["pid"], state["rabbitmq"]["pid"], state["rabbitmq"]["script"], state["epmd"]["pid"]]
    await everything_is_gone(Path(state["directory"]), pids)


async def test_two_runs_at_once_do_not_meet(children):
    """Each has ports, data and a node of its own; the end of one leaves the other running."""
    command = (
        LOCAL,
        "run",
        "--",
        sys.executable,
        "-c",
        TELL + "import sys; sys.stdin.read(); " + WAIT,
    )
    first = await children.python(*command)
    second = await children.python(*command)
    one, processes_of_one = await started(first)
    two, _ = await started(second)
    first.send(signal.SIGTERM)
    await first.wait()
    await everything_is_gone(one, processes_of_one)
    attached = Services.attach(two / "state.json")
    assert listens(attached.database_url)
    assert attached.rabbitmqctl("eval", "ok.").strip() == "ok"
    assert attached.evaluate('X = [{two, 1 + 1}], {X, "}"}') == '{[{two, 2}], "}"}'
    for wrong, told in (("nothing:here()", "undef"), ("1 +", "syntax error")):
        with pytest.raises(ServicesError, match=told):
            attached.evaluate(wrong)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
async def test_a_signal_reaches_the_command_and_then_all_is_stopped(children, signum):
    """The command decides how it ends; then everything that was started ends, and nothing else."""
    handler = f"import signal; signal.signal({int(signum)}, lambda *_: (print('told', flush=True), os._exit(5)))"
    process = await children.python(
        LOCAL, "run", "--", sys.executable, "-c", f"{TELL}{handler}; print('ready', flush=True); {WAIT}"
    )
    directory, processes = await started(process)
    await process.line("ready")
    process.send(signum)
    assert await process.wait() == 5
    assert "told\n" in process.out
    await everything_is_gone(directory, processes)


async def test_a_command_killed_by_a_signal_ends_with_128_and_its_number(children):
    """As a shell would have it."""
    process = await children.python(LOCAL, "run", "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert await process.wait(within=120) == 137


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
async def test_a_signal_during_the_start_leaves_nothing(children, signum):
    """A start that is given up half-way takes back what it has started."""
    process = await children.python(LOCAL, "up")

    def broker_is_booting():
        assert "beam.smp" in [name_of(each) for each in services_of(process)]

    await eventually(broker_is_booting, within=60)
    processes = services_of(process)
    assert len(processes) >= 4  # guard, epmd, the broker's script and its Erlang VM
    process.send(signum)
    assert await process.wait() == 128 + signum
    assert running(processes) == []
    assert "RELMSG_" not in process.stdout


def evaluated(lines: str) -> dict[str, str]:
    """What a program that a shell starts sees of relmsg's variables, once the shell has evaluated these lines."""
    shell = ["sh", "-c", f"eval {shlex.quote(lines)}; env -0"]
    seen = subprocess.run(shell, capture_output=True, text=True, check=True, env={}).stdout
    return dict(each.split("=", 1) for each in seen.split("\0") if each.startswith("RELMSG_"))


async def test_up_prints_the_urls_and_runs_until_ctrl_c(children, monkeypatch):
    """A shell that reads its output has control over the services; Ctrl-C is its proper end, exit code 0."""
    process = await children.python(LOCAL, "up")
    await process.line("running until Ctrl-C", within=100)
    printed = evaluated(process.stdout)
    assert urlsplit(printed["RELMSG_AMQP_URL"]).path == ""  # a "/" is a vhost without a name to most clients
    assert set(printed) == {"RELMSG_DATABASE_URL", "RELMSG_AMQP_URL", "RELMSG_LOCAL_STATE"}
    assert listens(printed["RELMSG_DATABASE_URL"])
    assert listens(printed["RELMSG_AMQP_URL"])
    for name, value in printed.items():
        monkeypatch.setenv(name, value)
    services = Services.from_environment()
    assert services is not None
    assert services.controlled
    processes = services_of(process)
    process.send(signal.SIGINT)
    assert await process.wait() == 0
    await everything_is_gone(Path(printed["RELMSG_LOCAL_STATE"]).parent, processes)


async def test_even_after_sigkill_nothing_is_left(children):
    """The guard outlives its owner and ends what that can no longer end."""
    process = await children.python(LOCAL, "up")
    directory = Path((await process.line("RELMSG_LOCAL_STATE=(.*)", within=100))[1]).parent
    processes = services_of(process)
    await process.kill()
    await everything_is_gone(directory, processes)


async def test_what_an_attached_process_has_restarted_is_stopped_too(children):
    """The owner stops what runs now, not what it once started; even if it stands still under SIGSTOP."""
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from compose.local import Services; "
        "services = Services.attach(); services.restart_rabbitmq(graceful=False); services.stop_postgres(); "
        "services.start_postgres(); os.kill(services.postgres_pid, signal.SIGSTOP); "
        "os.kill(services.broker_pid, signal.SIGSTOP); print('pids', services.broker_pid, services.postgres_pid)"
    )
    process = await children.python(LOCAL, "run", "--", sys.executable, "-c", script, str(ROOT))
    match = await process.line(r"^pids (\d+) (\d+)", within=150)
    assert await process.wait() == 0
    assert running([{"id": int(pid)} for pid in match.groups()]) == []


async def test_given_both_urls_it_starts_nothing(children):
    """The command gets the very URLs, and it is local.py's only child."""
    urls = {"RELMSG_DATABASE_URL": "postgresql+asyncpg://u:p@db.invalid/x", "RELMSG_AMQP_URL": "amqp://mq.invalid/"}
    script = (
        "import os, pathlib\n"
        "given = {name: value for name, value in os.environ.items() if name.startswith('RELMSG_')}\n"
        "children = pathlib.Path(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read_text().split()\n"
        "print(given, children == [str(os.getpid())])"
    )
    process = await children.start(sys.executable, LOCAL, "run", "--", sys.executable, "-c", script, **urls)
    assert await process.wait() == 0
    assert process.stdout == f"{urls} True\n"
    assert process.stderr == ""


async def test_one_url_alone_is_refused_in_one_line(children):
    """Half of the services given and half started would be a puzzle."""
    process = await children.start(
        sys.executable, LOCAL, "run", "--", "true", RELMSG_AMQP_URL="amqp://guest:secret@mq.invalid/"
    )
    assert await process.wait() == 3
    assert process.stderr.startswith("local.py: RELMSG_DATABASE_URL is not set: ")
    assert len(process.err) == 1
    assert "secret" not in process.stderr


async def test_a_command_that_cannot_be_run_is_told_in_one_line(children):
    """And the services are stopped."""
    process = await children.python(LOCAL, "run", "--", "/no/such/program")
    assert await process.wait(within=120) == 3
    assert process.err[-1] == "local.py: cannot run /no/such/program: No such file or directory\n"


def test_a_start_that_half_fails_leaves_nothing(monkeypatch):
    """PostgreSQL refuses to start: the error shows the end of its log, and the broker, already booting, is ended."""
    seen = []

    services = Services()
    launch = Postgres.launch

    def launch_broken(postgres):
        state = json.loads(services.state_file.read_text())
        seen.extend([state["rabbitmq"]["script"], state["epmd"]["pid"], Path(state["directory"])])
        with (Path(state["postgres"]["data"]) / "postgresql.conf").open("a") as conf:
            conf.write("no_such_setting = 1\n")
        launch(postgres)

    monkeypatch.setattr(Postgres, "launch", launch_broken)
    with pytest.raises(ServicesError, match=r"PostgreSQL ended while starting(.|\n)*no_such_setting"):
        services.start()
    *processes, directory = seen
    assert running(processes) == []
    assert not directory.exists()
    assert not services.owned
    services.stop()  # twice is fine


async def test_the_broker_comes_back_on_its_port_with_its_data(private):
    """After a graceful stop and after SIGKILL: a persistent message in a durable queue is still there."""
    control = Services.attach(private.state_file)
    for graceful in (True, False):
        async with Broker(private.amqp_url) as broker:
            await broker.queue("kept")
            await broker.publish(b"still here", routing_key="kept")
        before = control.broker_pid
        control.restart_rabbitmq(graceful)
        assert private.broker_pid == control.broker_pid != before
        async with Broker(private.amqp_url) as broker:
            assert [each.body for each in await broker.drain("kept")] == [b"still here"]


async def test_postgres_comes_back_on_its_port_with_its_data(private):
    """After a graceful stop and after one that is a crash."""
    url = private.database_url.replace("+asyncpg", "")
    for number, graceful in enumerate((True, False), start=1):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
        await connection.execute("INSERT INTO kept VALUES ($1)", number)
        private.stop_postgres(graceful)
        assert not listens(private.database_url)
        with pytest.raises(ServicesError, match="not running"):
            _ = private.postgres_pid
        await connection.close(timeout=1)
        private.start_postgres()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == number
        await connection.close()


async def test_postgres_is_set_for_durability(private):
    """Kill tests mean something only if a commit is on disk."""
    connection = await asyncpg.connect(private.database_url.replace("+asyncpg", ""))
    for name, value in {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}.items():
        assert await connection.fetchval("SELECT current_setting($1)", name) == value
    assert await connection.fetchval("SHOW max_connections") == "200"
    assert await connection.fetchval("SHOW max_prepared_transactions") == "10"
    await connection.close()


@pytest.mark.parametrize(("least", "in_memory"), [(0, True), (1 << 60, False)])
def test_data_is_in_memory_where_there_is_room(monkeypatch, tmp_path, least, in_memory):
    """Services that are to have their data in memory have it on the disk where memory has less room than they need."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(directory, "MEMORY", tmp_path)
    monkeypatch.setattr(directory, "LEAST_BYTES", least)
    made = directory.make_directory(os.geteuid(), in_memory=True)
    made.rmdir()
    assert directory.is_in_memory(made) == in_memory
    assert made.parent == (tmp_path if in_memory else ROOT / ".local")


def test_both_listen_on_the_loopback_only(private):
    """No socket of theirs is reachable from another machine."""
    state = json.loads(private.state_file.read_text())
    addresses = listening(state["postgres"]["pid"], state["rabbitmq"]["pid"], state["epmd"]["pid"])
    assert len(addresses) >= 4  # PostgreSQL, AMQP, Erlang distribution, epmd
    assert set(addresses) <= {"0100007F", "00000000000000000000000001000000"}


def test_nobody_else_may_read_their_logs(private):
    """The logs of the servers, which may hold what was in a statement, are their owner's alone."""
    logs = [*Path(private.environment["RELMSG_LOCAL_STATE"]).parent.glob("*.log")]
    assert {"postgres.log", "rabbitmq.log"} <= {each.name for each in logs}
    assert {each.name: oct(each.stat().st_mode & 0o777) for each in logs if each.stat().st_mode & 0o077} == {}


def test_services_given_by_url_cannot_be_controlled():
    """Their restart is refused, with the reason."""
    services = Services.given("postgresql+asyncpg://u@h/d", "amqp://h/")
    with services:
        assert not services.controlled
        controls = (services.restart_rabbitmq, services.stop_postgres, services.another, lambda: services.broker_pid)
        for refused in controls:
            with pytest.raises(ServicesError, match="given by URL"):
                refused()
