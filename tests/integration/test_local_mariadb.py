"""compose/local.py's MariaDB: there once somebody asks for it, private, and gone with the rest."""

from __future__ import annotations

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
from compose.services.guard import Guard, end_all
from compose.services.mariadb import MariaDB, account
from compose.services.state import State
from compose.services.waiting import Cancellation
from tests.support.local_services import everything_is_gone, listening, running


def new_state():
    """The state of services that have no server yet."""
    owner = account()
    return State.create(make_directory(owner[0] if owner else os.geteuid()))


@pytest.fixture(scope="module")
def state():
    """That of one server, started by the first test that needs it."""
    state = new_state()
    yield state
    end_all(state)


def known(state):
    return json.loads(state.path.read_text())["mariadb"]


def test_a_start_that_fails_leaves_nothing_and_says_why(state, monkeypatch):
    """The error shows the end of MariaDB's log; the next who asks finds no ruins."""
    MariaDB(state, Cancellation()).discard()
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


async def test_whoever_asks_first_starts_it_and_all_get_the_same(state):
    """Many ask at once, from threads of their own: there is one server, durable, and it was started once."""
    MariaDB(state, Cancellation()).discard()
    steps, urls = [], []
    servers = [MariaDB(state, Cancellation()) for _ in range(3)]
    threads = [threading.Thread(target=lambda each=each: urls.append(each.obtain(steps.append))) for each in servers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(urls) == 3
    assert len(set(urls)) == 1
    assert steps.count("starting MariaDB") == 1
    engine = create_async_engine(urls[0])
    async with engine.connect() as connection:
        assert "MariaDB" in await connection.scalar(text("SELECT version()"))
        assert await connection.scalar(text("SELECT @@innodb_flush_log_at_trx_commit")) == 1
    await engine.dispose()


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


async def test_it_ends_with_the_others_when_their_owner_does():
    """Whoever started it: the owner's guard reads what is running from the state file, and leaves nothing of it."""
    state = new_state()
    guard = Guard(state)
    MariaDB(state, Cancellation()).obtain(lambda _: None)
    server = known(state)["pid"]
    assert running([server]) == [server]
    guard.dismiss()
    await everything_is_gone(state.path.parent, [server])


def test_where_it_cannot_be_had_the_line_says_what_to_do(monkeypatch):
    """Who may not install is told what to install, or which variable to set: no test is passed over in silence."""
    monkeypatch.setattr(programs, "mariadb_programs", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServicesError) as raised:
        programs.find_mariadb(lambda _: None)
    assert "apt-get install --no-install-recommends mariadb-server-core mariadb-client-core" in str(raised.value)
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
