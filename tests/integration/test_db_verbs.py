"""`relmsg db` as an operator meets it: real processes, exit codes, one line for each error."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

import pytest
from sqlalchemy import make_url, text

from relmsg.database import create_engine

SECRET = "ge-heim"


async def relmsg(*arguments, **variables):
    """Run the command line and return exit code, stdout, stderr."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RELMSG_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relmsg.cli.main", *arguments),
        env=environ | variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


def shown(url, **changes):
    return make_url(url).set(**changes).render_as_string(hide_password=False)


@pytest.fixture
def closed_port():
    """A port of this machine on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


async def test_upgrade_check_and_sql(database_url):
    """The three verbs of the group do what they say, under a schema of any name, and end with 0."""
    flags = ("--schema", 'a "b" c', "--database-url", database_url)
    assert await relmsg("db", "upgrade", *flags) == (0, 'schema a "b" c: applied 0001, 0002, 0003\n', "")
    assert await relmsg("db", "upgrade", *flags) == (0, 'schema a "b" c: is up to date\n', "")
    assert await relmsg("db", "check", *flags) == (0, 'schema a "b" c is as it should be\n', "")
    assert await relmsg("db", "check", "--json", *flags) == (0, "[]\n", "")
    code, output, errors = await relmsg("db", "sql", "--schema", "x y")
    assert (code, errors) == (0, "")
    assert 'CREATE TABLE "x y".outbox_message' in output


async def test_check_names_each_difference_and_ends_with_1(database_url):
    """One line a difference, or one object; the exit code tells a script."""
    variables = {"RELMSG_DATABASE_URL": database_url, "RELMSG_SCHEMA": "mine"}
    await relmsg("db", "upgrade", **variables)
    engine = create_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("DROP INDEX mine.outbox_message_parked"))
        await connection.execute(text("ALTER TABLE mine.outbox_relay SET (fillfactor = 50)"))
    await engine.dispose()
    code, output, errors = await relmsg("db", "check", **variables)
    assert (code, errors) == (1, "")
    assert sorted(output.splitlines()) == [
        "index outbox_message_parked is missing",
        "table outbox_relay: storage options is fillfactor=50, expected none",
    ]
    code, output, _ = await relmsg("db", "check", "--json", **variables)
    assert code == 1
    assert {"difference": "index outbox_message_parked is missing"} in json.loads(output)


async def test_a_missing_schema_is_a_difference(database_url):
    """Where nothing stands yet, the check says so."""
    assert await relmsg("db", "check", "--schema", "none", RELMSG_DATABASE_URL=database_url) == (
        1,
        "schema none is missing\n",
        "",
    )


async def test_a_file_gives_settings(database_url, tmp_path):
    """--config names a TOML file with the settings."""
    file = tmp_path / "relmsg.toml"
    file.write_text(f"database_url = {database_url!r}\nschema = 'from file'\n")
    assert await relmsg("db", "upgrade", "--config", str(file)) == (
        0,
        "schema from file: applied 0001, 0002, 0003\n",
        "",
    )


def one_line(errors, *parts):
    assert errors.startswith("relmsg: ")
    assert errors.count("\n") == 1
    assert SECRET not in errors
    for part in parts:
        assert part in errors


@pytest.mark.parametrize("verb", ["upgrade", "check"])
class TestBadInput:
    """Each mistake gives one line that says what to do, no password, and its exit code."""

    async def test_service_away(self, verb, database_url, closed_port):
        """A closed port ends with 3 and names the place."""
        url = shown(database_url, host="127.0.0.1", port=closed_port, password=SECRET)
        code, output, errors = await relmsg("db", verb, RELMSG_DATABASE_URL=url)
        assert (code, output) == (3, "")
        one_line(errors, f"127.0.0.1:{closed_port}", "does not answer", "is it running")

    async def test_unknown_host(self, verb):
        """A name that does not resolve ends with 3."""
        url = f"postgresql://u:{SECRET}@no-such-host.invalid/d?sslmode=require"  # a plain one is warned of
        code, _, errors = await relmsg("db", verb, RELMSG_DATABASE_URL=url)
        assert code == 3
        one_line(errors, "no-such-host.invalid", "does not answer")

    async def test_wrong_password(self, verb, database_url):
        """A wrong password ends with 2: no retry helps."""
        url = shown(database_url, password=SECRET)
        code, _, errors = await relmsg("db", verb, RELMSG_DATABASE_URL=url)
        assert code == 2
        one_line(errors, "refused", "wrong user or password")

    async def test_no_such_database(self, verb, database_url):
        """A database that does not exist ends with 2."""
        code, _, errors = await relmsg("db", verb, RELMSG_DATABASE_URL=shown(database_url, database="nowhere"))
        assert code == 2
        one_line(errors, "create it first")

    @pytest.mark.parametrize(
        "url", [f"mysql://u:{SECRET}@h/d", f"u:{SECRET}@h", f"postgresql://u:a/b{SECRET}@h:x/d", "", "postgresql://"]
    )
    async def test_wrong_url(self, verb, url):
        """What is not a URL of PostgreSQL ends with 2, before anything is connected."""
        code, _, errors = await relmsg("db", verb, RELMSG_DATABASE_URL=url)
        assert code == 2
        one_line(errors, "RELMSG_DATABASE_URL")

    async def test_no_url(self, verb):
        """Without a database the variable is named."""
        code, _, errors = await relmsg("db", verb)
        assert code == 2
        one_line(errors, "RELMSG_DATABASE_URL=postgresql+asyncpg://")

    async def test_unknown_setting(self, verb):
        """A variable that does not exist is answered with the one that was meant."""
        code, _, errors = await relmsg("db", verb, RELMSG_DATABASEURL="x")
        assert code == 2
        one_line(errors, "there is no setting RELMSG_DATABASEURL, did you mean RELMSG_DATABASE_URL?")

    async def test_unknown_flag(self, verb):
        """A flag that does not exist ends with 2 in one line."""
        code, _, errors = await relmsg("db", verb, "--shcema", "x")
        assert code == 2
        one_line(errors, "--shcema", "--schema")

    async def test_bad_schema_name(self, verb):
        """A schema name that PostgreSQL cannot keep is refused by its rule."""
        code, _, errors = await relmsg("db", verb, "--schema", "x" * 64)
        assert code == 2
        one_line(errors, "1 to 63 bytes")


async def test_a_schema_newer_than_this_code_is_left_alone(database_url):
    """What a newer relmsg made is not touched by an older one."""
    variables = {"RELMSG_DATABASE_URL": database_url, "RELMSG_SCHEMA": "new"}
    await relmsg("db", "upgrade", **variables)
    engine = create_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE new.relmsg_version SET version_num = '9999'"))
    await engine.dispose()
    code, _, errors = await relmsg("db", "upgrade", **variables)
    assert code == 2
    one_line(errors, "9999", "newer than this code")


async def test_help_and_version():
    """Help and version need nothing; a command without its verb shows the help and ends with 2."""
    assert (await relmsg("--help"))[0] == 0
    assert (await relmsg("db", "check", "--help"))[0] == 0
    code, output, _ = await relmsg("--version")
    assert (code, output.split()[0]) == (0, "relmsg")
    code, _, errors = await relmsg("db")
    assert code == 2
    assert "upgrade" in errors
