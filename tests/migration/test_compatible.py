"""Migrations add before they remove: what the oldest code that may work uses, stays as it was."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from relmsg import migrate
from relmsg.catalogue import Thing, _snapshot
from relmsg.database import create_engine
from relmsg.db import alembic_run
from relmsg.db.indexes import build_small
from relmsg.db.revisions import Revision, revisions
from relmsg.db.search_path import local_search_path
from relmsg.db.versions import VERSION_TABLES, recorded
from tests.support.databases import Databases

MIGRATION = '''"""{body}"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
oldest_compatible = "{oldest}"
alters = []
concurrent_indexes = []


def upgrade() -> None:
    op.execute("ALTER TABLE relmsg.{body}")
'''

BREAKING = {
    "inbox_message DROP COLUMN handled_at": "column inbox_message.handled_at is gone",
    "inbox_message RENAME COLUMN handled_at TO done_at": "column inbox_message.handled_at is gone",
    "half_message RENAME TO half": "table half_message is gone",
    "half_message ALTER COLUMN type TYPE varchar(20)": "column half_message.type: type was text, is character varying",
    "half_message ALTER COLUMN checks TYPE smallint": "column half_message.checks: type was integer, is smallint",
    "half_message ALTER COLUMN checks DROP DEFAULT": "column half_message.checks: default was 0, is none",
    "half_message ALTER COLUMN type SET NOT NULL": "column half_message.type: nullability was null, is not null",
    "half_message ADD COLUMN region text NOT NULL": "column half_message.region is new and older code does not fill it",
    "half_message ADD CONSTRAINT few CHECK (checks < 9)": "constraint half_message.few is new on an older table",
    "half_message ADD CONSTRAINT one UNIQUE (type)": "constraint half_message.one is new on an older table",
    "inbox_message DROP CONSTRAINT inbox_message_pkey": "constraint inbox_message.inbox_message_pkey is gone",
}
KEEPING = [
    "half_message ADD COLUMN region text",
    "half_message ADD COLUMN region text NOT NULL DEFAULT 'here'",
    "half_message ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY",
    "half_message SET (fillfactor = 80)",
]


def broken(before: list[Thing], after: list[Thing]) -> list[str]:
    """One line for each thing of ``after`` on which code made for ``before`` would fail."""
    old, new = ({str(thing): thing for thing in things} for things in (before, after))
    lines = [f"{name} is gone" for name in old if name not in new]
    for name in old.keys() & new.keys():
        for attribute, value in old[name].attributes.items():
            now = new[name].attributes[attribute]
            if attribute != "storage options" and now != value:
                lines.append(f"{name}: {attribute} was {value or 'none'}, is {now or 'none'}")
    tables = {thing.of for thing in before}
    for name, thing in new.items():
        if name in old or thing.of not in tables:
            continue
        if thing.kind == "constraint" or thing.attributes.get("uniqueness") == "unique":
            lines.append(f"{name} is new on an older table")
        filled = ("default", "generated expression", "identity")
        if thing.attributes.get("nullability") == "not null" and not any(map(thing.attributes.get, filled)):
            lines.append(f"{name} is new and older code does not fill it")
    return lines


def prefix(folder: Path, known: tuple[Revision, ...], to: Path) -> Path:
    """A copy of the environment that knows these revisions only."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__"))
    for file in to.glob("versions/*.py"):
        if file.name[:4] not in {revision.name for revision in known}:
            file.unlink()
    return to


def applied(connection: Connection, environment: Path) -> list[Thing]:
    """Bring the tables to the newest revision that the environment knows; what they consist of then."""
    with local_search_path(connection):
        alembic_run.run(connection, "relmsg", environment, recorded(connection, "relmsg"))
        assert build_small(connection, "relmsg", revisions(environment)[-1].concurrent_indexes) == []
        namespace = connection.scalar(text("SELECT oid FROM pg_namespace WHERE nspname = 'relmsg'"))
        return [thing for thing in _snapshot(connection, namespace) if thing.of not in VERSION_TABLES]


@pytest.fixture(scope="module")
def snapshots(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Thing]]:
    """What the tables consist of after each of our migrations, which are applied one by one."""

    async def take() -> dict[str, list[Thing]]:
        folder, workspace, found = migrate.location(), tmp_path_factory.mktemp("steps"), {}
        known = revisions(folder)
        url = await databases.create(empty=True)
        engine = create_engine(url, poolclass=NullPool)
        for number, revision in enumerate(known):
            environment = prefix(folder, known[: number + 1], workspace / revision.name)
            async with engine.begin() as connection:
                found[revision.name] = await connection.run_sync(applied, environment)
        await databases.drop(url)
        return found

    return asyncio.run(take())


def broken_rules(snapshots: dict[str, list[Thing]], known: tuple[Revision, ...]) -> list[str]:
    """A line for each migration that breaks code which it says may still work."""
    lines, names = [], [revision.name for revision in known]
    for number, revision in enumerate(known):
        for older in names[names.index(revision.oldest_compatible) : number]:
            found = broken(snapshots[older], snapshots[revision.name])
            lines += [f"{revision.name} breaks {older}: {line}" for line in found]
    return lines


async def broken_by(engine: AsyncEngine, snapshots: dict[str, list[Thing]], folder: Path) -> list[str]:
    """The same once the last migration of the folder is applied to tables that have all the others."""
    known = revisions(folder)
    async with engine.begin() as connection:
        last = await connection.run_sync(applied, folder)
    return broken_rules(snapshots | {known[-1].name: last}, known)


def with_migration(body: str, oldest: str, to: Path) -> Path:
    """The environment with one more migration, which alters a table so."""
    folder = prefix(migrate.location(), revisions(migrate.location()), to)
    (folder / "versions" / "0004_made_by_a_test.py").write_text(MIGRATION.format(body=body, oldest=oldest))
    return folder


def test_no_migration_breaks_what_it_says_may_still_work(snapshots):
    """Every migration leaves alone what the code of each version it keeps compatible uses."""
    assert broken_rules(snapshots, revisions(migrate.location())) == []


@pytest.mark.parametrize("body", BREAKING)
async def test_a_migration_that_breaks_older_code_is_found(engine, snapshots, tmp_path, body):
    """A migration that takes away or forbids what older code does is named, with the version that it breaks."""
    found = await broken_by(engine, snapshots, with_migration(body, "0003", tmp_path / "made"))
    assert any(line.startswith(f"0004 breaks 0003: {BREAKING[body]}") for line in found), found


@pytest.mark.parametrize("body", KEEPING)
async def test_a_migration_that_only_adds_is_accepted(engine, snapshots, tmp_path, body):
    """What older code need not know of may be added to its tables."""
    assert await broken_by(engine, snapshots, with_migration(body, "0002", tmp_path / "made")) == []


async def test_what_nobody_uses_any_more_may_go(engine, snapshots, tmp_path):
    """A migration that lets no older version work may remove what only older versions used."""
    folder = with_migration("half_message DROP COLUMN type", "0004", tmp_path / "made")
    assert await broken_by(engine, snapshots, folder) == []
