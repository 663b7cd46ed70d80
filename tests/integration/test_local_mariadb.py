"""compose/local.py's MariaDB: there once somebody asks for it, private, and gone with the rest."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from compose.local import Services, ServicesError
from compose.services import programs
from compose.services.directory import make_directory
from compose.services.environment import MARIADB_URL
from compose.services.guard import end_all
from compose.services.mariadb import MariaDB, account
from compose.services.state import State
from compose.services.waiting import Cancellation
from tests.support.local_services import LOCAL, everything_is_gone, listening, running
from tests.support.processes import Processes


@pytest.fixture
async def children():
    """Starts real processes without any RELMSG_ variable."""
    async with Processes() as processes:
        yield processes


@pytest.fixture
def state():
    """The state of services that have no server yet."""
    owner = account()
    directory = make_directory(owner[0] if owner else os.geteuid())
    state = State.create(directory)
    yield state
    end_all(state)
    assert not directory.exists()


def known(state):
    return json.loads(state.path.read_text())["mariadb"]


async def test_whoever_asks_first_starts_it_and_all_get_the_same(state):
    """Many ask at once, from threads of their own: there is one server, and one start was reported."""
    steps, urls = [], []
    servers = [MariaDB(state, Cancellation()) for _ in range(3)]
    threads = [threading.Thread(target=lambda each=each: urls.append(each.obtain(steps.append))) for each in servers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(urls) == 3
    assert len(set(urls)) == 1
    assert steps[-1:] == ["starting MariaDB"]
    assert steps.count("starting MariaDB") == 1
    engine = create_async_engine(urls[0])
    async with engine.connect() as connection:
        assert "MariaDB" in await connection.scalar(text("SELECT version()"))
        assert await connection.scalar(text("SELECT @@innodb_flush_log_at_trx_commit")) == 1
    await engine.dispose()
    process = known(state)["pid"]
    MariaDB(state, Cancellation()).discard()
    assert running([process]) == []


async def test_it_lets_nobody_else_in(state):
    """It listens on the loopback only, wants its password, and has no account without one."""
    url = make_url(MariaDB(state, Cancellation()).obtain(lambda _: None))
    for login in (url.set(password="wrong"), url.set(username="root", password=""), url.set(username="", password="")):
        engine = create_async_engine(login)
        with pytest.raises(OperationalError, match="Access denied"):
            async with engine.connect():
                pass
        await engine.dispose()
    assert listening(known(state)["pid"]) == ["0100007F"]


def test_a_start_that_fails_leaves_nothing_and_says_why(state, monkeypatch):
    """The error shows the end of MariaDB's log; the next who asks finds no ruins."""
    seen = []
    launch = MariaDB._launch

    def launch_broken(mariadb):
        (Path(known(state)["home"]) / "init.sql").unlink()
        seen.append(known(state)["home"])
        launch(mariadb)

    with monkeypatch.context() as patched:
        patched.setattr(MariaDB, "_launch", launch_broken)
        with pytest.raises(ServicesError, match=r"MariaDB ended while starting(.|\n)*init\.sql"):
            MariaDB(state, Cancellation()).obtain(lambda _: None)
    assert running([known(state)["pid"]]) == []
    assert not Path(seen[0]).exists()
    assert MariaDB(state, Cancellation()).obtain(lambda _: None).startswith("mariadb+aiomysql://")


async def test_one_that_an_attached_process_has_started_ends_with_the_others(children, monkeypatch):
    """Even after SIGKILL of local.py: its guard ends what is running then, whoever started it."""
    monkeypatch.delenv(MARIADB_URL, raising=False)
    process = await children.python(LOCAL, "up")
    path = Path((await process.line("RELMSG_LOCAL_STATE=(.*)", within=100))[1])
    await asyncio.to_thread(Services.attach(path).start_mariadb)
    server = known(State(path))["pid"]
    assert running([server]) == [server]
    await process.kill()
    await everything_is_gone(path.parent, [server])


def test_where_it_cannot_be_had_the_line_says_what_to_do(monkeypatch):
    """Who may not install is told what to install, or which variable to set: no test is passed over in silence."""
    monkeypatch.setattr(programs, "mariadb_programs", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServicesError) as raised:
        programs.find_mariadb(lambda _: None)
    assert "apt-get install --no-install-recommends mariadb-server-core" in str(raised.value)
    assert "or set RELMSG_MARIADB_URL" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_that_is_given_is_used_and_none_is_started(monkeypatch):
    """Beside services that are given, too; where none is given there, it says which variable to set."""
    services = Services.given("postgresql+asyncpg://u@h/d", "amqp://h/")
    monkeypatch.setenv(MARIADB_URL, "mariadb+aiomysql://u@h/d")
    assert services.start_mariadb() == "mariadb+aiomysql://u@h/d"
    monkeypatch.delenv(MARIADB_URL)
    with pytest.raises(ServicesError, match="set RELMSG_MARIADB_URL"):
        services.start_mariadb()
