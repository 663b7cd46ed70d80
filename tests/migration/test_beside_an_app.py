"""An application with an Alembic tree of its own keeps one head, and never finds our tables in its migrations."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from relmsg import migrate

INI = """
[alembic]
script_location = %(here)s/tree
path_separator = os
"""
ENV = """
import asyncio, functools, os
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.ext.asyncio import create_async_engine
from relmsg import migrate

metadata = MetaData()
Table("customer", metadata, Column("id", Integer, primary_key=True))

def run(connection):
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_schemas=True,
        include_object=functools.partial(migrate.include_object, schema=os.environ["OUR_SCHEMA"]),
    )
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = create_async_engine(
        os.environ["APP_URL"], connect_args={"server_settings": {"search_path": os.environ["SEARCH_PATH"]}}
    )
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()

asyncio.run(main())
"""
MAKO = """
from alembic import op
import sqlalchemy as sa
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade():
    ${upgrades or "pass"}
def downgrade():
    pass
"""
# The other way: the application's own revision brings relmsg's tables, and goes on with its own.
REVISION = """
from alembic import op
import sqlalchemy as sa
from relmsg import migrate
revision = "app1"
down_revision = None
def upgrade():
    migrate.upgrade_connection(op.get_bind(), "relmsg")
    op.create_table("customer", sa.Column("id", sa.Integer, primary_key=True))
"""


@pytest.fixture
def app(tmp_path, empty_url):
    """An application's Alembic environment, and a function that runs its `alembic`."""
    (tmp_path / "tree" / "versions").mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(INI)
    (tmp_path / "tree" / "env.py").write_text(ENV)
    (tmp_path / "tree" / "script.py.mako").write_text(MAKO)

    async def alembic(*arguments, schema="relmsg", search_path="public"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "alembic", *arguments),
            cwd=tmp_path,
            env=os.environ | {"APP_URL": empty_url, "OUR_SCHEMA": schema, "SEARCH_PATH": search_path},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    alembic.versions = tmp_path / "tree" / "versions"
    return alembic


@pytest.mark.parametrize("schema", ["relmsg", 'we"ird', "public"])
async def test_autogenerate_finds_nothing_of_ours_and_one_head_stays(app, empty_url, empty_engine, schema):
    """With include_object the application's migrations hold its own tables only, before and after."""
    await migrate.upgrade(empty_url, schema)
    await app("revision", "--autogenerate", "-m", "first", schema=schema)
    (written,) = app.versions.glob("*_first.py")
    assert "customer" in written.read_text()
    assert not any(word in written.read_text() for word in ("outbox", "inbox", "relmsg_version", "drop"))
    await app("upgrade", "head", schema=schema)
    assert "No new upgrade operations detected" in await app("check", schema=schema)
    assert len((await app("heads", schema=schema)).strip().splitlines()) == 1
    assert await migrate.check(empty_engine, schema) == []


async def test_our_schema_may_come_first_in_the_search_path(app, empty_url):
    """Where the user is named like our schema, PostgreSQL looks there first, and Alembic does not tell the schema."""
    await migrate.upgrade(empty_url, "relmsg")
    await app("revision", "--autogenerate", "-m", "first", search_path="relmsg, public")
    (written,) = app.versions.glob("*_first.py")
    assert "customer" in written.read_text()
    assert not any(word in written.read_text() for word in ("outbox", "inbox", "relmsg_version", "drop"))


async def test_a_revision_of_the_app_can_bring_our_tables(app, empty_url, empty_engine):
    """Inside the application's own revision our migrations run in its transaction, and its revision goes on."""
    (app.versions / "app1.py").write_text(REVISION)
    await app("upgrade", "head")
    assert "No new upgrade operations detected" in await app("check")
    assert (await app("heads")).split() == ["app1", "(head)"]
    assert await migrate.check(empty_engine) == []
    assert await migrate.upgrade(empty_url) == []
