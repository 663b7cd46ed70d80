"""compose/local.py runs the versions it is asked for, in a tree of Debian's where the machine has others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiormq
import asyncpg
import pytest

from compose import local
from compose.local import Services, ServicesError
from compose.services import programs, trees
from compose.services.environment import CACHE
from compose.services.processes import named
from compose.services.userland import Userland
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.local_services import LOCAL, everything_is_gone, listens, running, services_of
from tests.support.processes import Processes


@pytest.fixture
async def children():
    """Starts real processes without any RELMSG_ variable."""
    async with Processes() as processes:
        yield processes


def mounts():
    """What is mounted, as this process sees it."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


async def versions(services):
    """The major versions of PostgreSQL and RabbitMQ, as they tell them themselves."""
    database = await asyncpg.connect(services.database_url.replace("+asyncpg", ""))
    broker = await aiormq.connect(services.amqp_url)
    told = await database.fetchval("SHOW server_version"), broker.server_properties["version"]
    await database.close()
    await broker.close()
    return tuple(version.split(".")[0] for version in told)


@pytest.mark.parametrize("before", [True, False], ids=["before the verb", "after it"])
def test_the_options_may_stand_before_the_verb_and_after_it(monkeypatch, before):
    """What stands behind the command, or behind --, is the command's own; what is not said is left open."""
    asked = []
    monkeypatch.setattr(local, "_run", lambda command, wanted: asked.append((command, wanted)) or 0)
    options = ["--rabbitmq", "4", "--postgres", "17", "--management", "--in-memory"]
    command = ["prog", "--rabbitmq", "3"]
    local.main([*options, "run", "--", *command] if before else ["run", *options, "--", *command])
    local.main(["run", *command])
    assert asked == [
        (command, {"rabbitmq": "4", "postgres": "17", "management": True, "in_memory": True}),
        (command, {"rabbitmq": None, "postgres": None, "management": False, "in_memory": False}),
    ]


def test_what_is_missing_is_named_in_one_line(monkeypatch):
    """Who may not install is told what to install."""
    monkeypatch.setattr(programs, "rabbitmq_sbin", lambda *_: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServicesError) as raised:
        Services().start()
    assert "apt-get install --no-install-recommends rabbitmq-server" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_version_that_is_not_offered_is_wrong_use(capsys):
    """The line says which are."""
    with pytest.raises(SystemExit) as raised:
        local.main(["up", "--rabbitmq", "2"])
    assert raised.value.code == 2
    assert "choose from '3', '4'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("obstacle", "said"),
    [
        (lambda patch: patch.setattr(os, "geteuid", lambda: 1000), "only root"),
        (lambda patch: patch.setenv("PATH", ""), "without apt-get"),
    ],
    ids=["not root", "no apt-get"],
)
def test_a_version_that_cannot_be_had_is_told_in_one_line(monkeypatch, obstacle, said):
    """Which it is, why, and what to do."""
    monkeypatch.setattr(programs, "rabbitmq_sbin", lambda version=None, *_: None if version else Path("/sbin"))
    obstacle(monkeypatch)
    with pytest.raises(ServicesError) as raised:
        Services(rabbitmq="4").start()
    assert str(raised.value).startswith("RabbitMQ 4 is not installed, and ")
    assert said in str(raised.value)
    assert "install it, or set RELMSG_DATABASE_URL and RELMSG_AMQP_URL" in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_version_of_services_that_are_given_is_refused_in_one_line(children):
    """Nobody would notice that a test ran on another broker than it asked for."""
    urls = {"RELMSG_DATABASE_URL": "postgresql+asyncpg://u:p@db.invalid/x", "RELMSG_AMQP_URL": "amqp://mq.invalid/"}
    process = await children.start(sys.executable, LOCAL, "--rabbitmq", "4", "run", "--", "true", **urls)
    assert await process.wait() == 3
    assert process.err == [
        "local.py: RELMSG_DATABASE_URL and RELMSG_AMQP_URL are set: unset both, or leave the versions to them\n"
    ]


async def test_other_versions_than_the_machines_run_and_leave_no_mount(children):
    """They answer, restart, listen and end like the machine's own, even after SIGKILL; a second pair has them too."""
    cache = {CACHE: os.environ[CACHE]} if CACHE in os.environ else {}
    options = ("--rabbitmq", "4", "--postgres", "17", "--management")
    process = await children.start(sys.executable, LOCAL, "up", *options, **cache)
    directory = Path((await process.line("RELMSG_LOCAL_STATE=(.*)", within=900))[1]).parent
    processes = services_of(process)
    services = Services.attach(directory / "state.json")
    async with Broker(services.amqp_url) as broker:
        await broker.queue("kept")
        await broker.publish(b"still here", routing_key="kept")
    before = services.broker_pid
    await asyncio.to_thread(services.restart_rabbitmq, graceful=False)
    assert services.broker_pid != before
    processes.append(named(services.broker_pid))
    assert await versions(services) == ("17", "4")
    with services.another() as second:
        await asyncio.to_thread(second.start)
        assert await versions(second) == ("17", "4")
    async with Broker(services.amqp_url) as broker:
        assert [each.body for each in await broker.drain("kept")] == [b"still here"]
    assert listens(services.management_url)
    state = json.loads((directory / "state.json").read_text())
    await process.kill()
    await everything_is_gone(directory, processes)
    for server in (state["postgres"], state["rabbitmq"]):
        assert not Userland.of(server).outside(directory).exists()
    assert [each for each in mounts() if str(directory) in each] == []


async def test_a_tree_that_is_cut_short_is_made_anew_by_the_next(children, tmp_path):
    """Two ask for one tree: one makes it, the other waits and takes over; no half of one is ever taken for whole."""
    version = next(each for each in programs.BY_RABBITMQ if not programs.rabbitmq_sbin(each))
    command = (sys.executable, LOCAL, "up", "--rabbitmq", version)

    async def making(process):
        await process.line("making Debian", within=60)
        [new] = tmp_path.glob("*.new-*")

        def has_begun():
            assert [*new.iterdir()]

        await eventually(has_begun, within=120)
        return new, services_of(process)

    first = await children.start(*command, **{CACHE: str(tmp_path)})
    new_of_first, processes_of_first = await making(first)
    second = await children.start(*command, **{CACHE: str(tmp_path)})
    await second.line("waiting for")
    await first.kill()
    new, processes = await making(second)
    assert new != new_of_first
    second.send(signal.SIGTERM)
    assert await second.wait() == 128 + signal.SIGTERM
    assert running(processes_of_first + processes) == []
    assert {each.suffix for each in tmp_path.iterdir()} == {".lock", ".log"}


def test_debootstrap_takes_the_proxies_that_apt_has(monkeypatch, tmp_path):
    """Where only apt knows the way out, a tree can be made too; the environment goes before, DIRECT is none."""
    (tmp_path / "apt.conf").write_text(
        'Acquire::http::Proxy "http://proxy.invalid:3128"; Acquire::http::Proxy::mirror.invalid "DIRECT";\n'
        'Acquire::https::Proxy "DIRECT";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.delenv("http_proxy", raising=False)
    assert trees.proxies() == {"http_proxy": "http://proxy.invalid:3128"}
    monkeypatch.setenv("http_proxy", "http://other.invalid:3128")
    assert trees.proxies() == {}
