"""Bringing relmsg's tables into a database, and telling whether they are right.

relmsg's migrations are a tree of their own: their version table (``relmsg_version``) stands in relmsg's schema, so that
an application's own Alembic tree keeps one head and never hears of ours (see migrations/README.md).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from relmsg import catalogue
from relmsg.database import create_engine
from relmsg.db.failures import translated
from relmsg.errors import DatabaseAway, SchemaError
from relmsg.retry import full_jitter
from relmsg.schema import tables
from relmsg.settings import schema_in_force

if TYPE_CHECKING:  # Alembic takes a fifth of a second to import: only who migrates or compares needs it
    from alembic.config import Config
    from alembic.script import ScriptDirectory

T = TypeVar("T")

VERSION_TABLE = "relmsg_version"
# A DDL statement that waits for a lock makes every producer wait behind it: give up after 1 s (in env.py), let them
# pass, try again (reliability.md R3).
ATTEMPTS = 10
_LOCK_NOT_AVAILABLE = "55P03"

# Alembic keeps the migration it runs in module globals, so one event loop runs one at a time.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def upgrade(url: str | URL, schema: str | None = None) -> list[str]:
    """Bring the schema to the newest version, creating it if it is missing; the revisions applied, oldest first.

    All of it is one transaction: it is there or it is not. Any number of processes may call this at the same time; one
    works, the others wait and find nothing left to do. A lock is awaited for 1 s at most, then everything is
    rolled back and tried again, ten times in all. The schema is that of ``RELMSG_SCHEMA`` unless given.

    :raises SchemaError: if the schema is newer than this code, or holds relmsg's tables without their version.
    :raises DatabaseAway: if PostgreSQL does not answer, or a table stayed locked by another session.
    :raises AccessRefused: wrong user, password or database, or no permission to create.
    """
    schema = schema_in_force(schema)
    engine = create_engine(url, poolclass=NullPool)
    try:
        async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    with translated(url):
                        async with engine.begin() as connection:
                            return await connection.run_sync(upgrade_connection, schema)
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                        raise
                    if attempt == ATTEMPTS:
                        raise DatabaseAway(
                            f"schema {schema} could not be upgraded: another session holds a lock on it for long; find "
                            "it in pg_locks, end it, and try again"
                        ) from error
                await asyncio.sleep(full_jitter(attempt, base=0.2, cap=2.0))
    finally:
        await engine.dispose()
    raise AssertionError("unreachable")


def upgrade_connection(connection: Connection, schema: str | None = None) -> list[str]:
    """``upgrade`` inside the caller's transaction, which is neither committed nor retried; any driver will do.

    Made for a revision in an application's own Alembic tree: ``migrate.upgrade_connection(op.get_bind())``. Inside the
    transaction ``lock_timeout`` is 1 s from here on.
    """
    schema = schema_in_force(schema)
    connection.execute(text("SET LOCAL lock_timeout = '60s'"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('relmsg db upgrade ' || CAST(:schema AS text), 0))"),
        {"schema": schema},
    )
    version = _version(connection, schema)
    if version is None and _present(connection, schema, _names(schema)):
        raise SchemaError(
            f"schema {schema} holds relmsg's tables but not their version ({VERSION_TABLE}): they were not made by "
            "`relmsg db upgrade`; give relmsg another schema, or drop these tables if they are empty"
        )
    if version is not None and version not in _revisions():
        raise SchemaError(_newer(schema, version))
    exists = connection.execute(
        text("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = :schema"), {"schema": schema}
    ).scalar()
    return _run(connection, schema, schema_exists=bool(exists))


def sql(schema: str | None = None) -> str:
    """What ``upgrade`` does to an empty database, as plain SQL in one transaction, version table included."""
    schema = schema_in_force(schema)
    written = io.StringIO()
    _run(None, schema, output=written)
    return written.getvalue()


async def check(bind: AsyncEngine | AsyncConnection, schema: str | None = None) -> list[str]:
    """One line for each difference between the database and ``relmsg.schema``; none if all is as it should be.

    Compared: tables, columns, types, nullability, defaults, generated expressions, identities, constraints, indexes
    with their columns and predicates, storage options, the rows of outbox_slot, the version. Nothing is changed. On a
    connection in a transaction it works within that transaction, behind a savepoint.

    :raises DatabaseAway, AccessRefused: if the comparison could not be made.
    """
    schema = schema_in_force(schema)
    return await _on(bind, _differences, schema)


async def require_current(bind: AsyncEngine | AsyncConnection, schema: str | None = None) -> None:
    """Return if the schema has the version this code is made for, and its tables. Every process calls it at its start.

    :raises SchemaError: if relmsg's tables are missing, older, or newer than this code; its text says what to do.
    :raises DatabaseAway, AccessRefused: if it could not be found out.
    """
    schema = schema_in_force(schema)
    version = await _on(bind, _version, schema)
    newest, *older = _revisions()
    if version is None:
        raise SchemaError(f"relmsg's tables are missing in schema {schema}: run `relmsg db upgrade`")
    if version in older:
        raise SchemaError(f"schema {schema} has version {version}, this relmsg needs {newest}: run `relmsg db upgrade`")
    if version != newest:
        raise SchemaError(_newer(schema, version))
    if missing := await _on(bind, _missing, schema):
        # Otherwise found out in the middle of the work, where it looks like an outage that will pass.
        raise SchemaError(
            f"schema {schema} has version {version}, but {', '.join(missing)} is missing: somebody dropped it; bring "
            "it back as `relmsg db sql` defines it, `relmsg db check` tells when all is well"
        )


def include_object(
    item: Any,
    name: str | None,
    type_: str,
    reflected: bool,
    compare_to: Any,
    *,
    schema: str | None = None,
) -> bool:
    """For ``context.configure(include_object=…)`` of an application's own Alembic: leaves out relmsg's tables.

    Left out is what stands in that schema and bears the name of one of relmsg's tables. Alembic does not tell the
    schema of what stands in the connection's default one: there a table is left out by its name, unless the
    application's metadata has a table of that name itself. For another schema's name:
    ``functools.partial(include_object, schema="messages")``.
    """
    schema = schema_in_force(schema)
    ours = {table.name for table in tables(schema).metadata.tables.values()} | {VERSION_TABLE}
    if type_ != "table":  # Alembic asks for indexes and constraints only of tables it has let in
        return True
    if item.schema is None:
        return not (name in ours and reflected and compare_to is None)
    return not (name in ours and item.schema == schema)


def location() -> Path:
    """The folder of the Alembic environment: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parent
    shipped = package / "migrations"
    return shipped if shipped.is_dir() else package.parent / "migrations"


def _scripts(config: Config) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(location()).replace("%", "%%"))
    return config


@lru_cache
def _revisions() -> tuple[str, ...]:
    """Every revision this code knows, the newest first."""
    return tuple(script.revision for script in _scripts(_config()).walk_revisions())


def _run(
    connection: Connection | None,
    schema: str,
    *,
    schema_exists: bool = False,
    output: io.StringIO | None = None,
) -> list[str]:
    from alembic.runtime.environment import EnvironmentContext

    applied: list[str] = []
    config = _config()
    scripts = _scripts(config)

    def note(*, step: Any, **_: Any) -> None:
        applied.extend(step.up_revision_ids)

    config.attributes.update(
        connection=connection,
        schema=schema,
        schema_exists=schema_exists,
        version_table=VERSION_TABLE,
        on_version_apply=note,
    )
    environment = EnvironmentContext(
        config,
        scripts,
        fn=lambda revision, _context: scripts._upgrade_revs("head", revision),
        as_sql=connection is None,
        output_buffer=output,
        destination_rev="head",
    )
    with _nested(), environment:
        scripts.run_env()
    return applied


@contextmanager
def _nested() -> Iterator[None]:
    """Let Alembic run inside a revision that Alembic runs: leaving a context empties ``alembic.op`` and
    ``alembic.context``, and the outer revision still needs them.
    """
    import alembic.context
    import alembic.op

    modules = (vars(alembic.op), vars(alembic.context))
    before = [dict(module) for module in modules]
    try:
        yield
    finally:
        for module, names in zip(modules, before, strict=True):
            module.update(names)


async def _on(bind: AsyncEngine | AsyncConnection, read: Callable[[Connection, str], T], schema: str) -> T:
    """Read in the connection's transaction, or in one of its own that is rolled back."""
    with translated(bind.engine.url):
        if isinstance(bind, AsyncEngine):
            async with bind.connect() as connection:
                return await connection.run_sync(read, schema)
        if bind.in_transaction():
            return await bind.run_sync(read, schema)
        try:
            return await bind.run_sync(read, schema)
        finally:
            await bind.rollback()


def _differences(connection: Connection, schema: str) -> list[str]:
    lines = catalogue.differences(connection, schema, VERSION_TABLE)
    version = _version(connection, schema)
    if version != _revisions()[0] and lines != [f"schema {schema} is missing"]:
        lines.append(f"table {VERSION_TABLE}: version is {version or 'none'}, expected {_revisions()[0]}")
    return lines


def _version(connection: Connection, schema: str) -> str | None:
    if not _present(connection, schema, [VERSION_TABLE]):
        return None
    quoted = connection.dialect.identifier_preparer.quote_schema(schema).replace(":", "\\:")
    versions = connection.execute(text(f"SELECT version_num FROM {quoted}.{VERSION_TABLE}")).scalars()  # noqa: S608
    return max(map(str, versions), default=None)


def _names(schema: str) -> list[str]:
    return [table.name for table in tables(schema).metadata.tables.values()]


def _missing(connection: Connection, schema: str) -> list[str]:
    return sorted(set(_names(schema)) - _present(connection, schema, _names(schema)))


def _present(connection: Connection, schema: str, names: list[str]) -> set[str]:
    found = connection.execute(
        text(
            "SELECT relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace "
            "WHERE n.nspname = :schema AND c.relname = ANY(CAST(:names AS text[]))"
        ),
        {"schema": schema, "names": names},
    )
    return set(found.scalars())


def _newer(schema: str, version: str) -> str:
    return (
        f"schema {schema} has version {version}, which this relmsg does not know: it is newer than this code, so "
        "install the relmsg that made it, or a later one"
    )
