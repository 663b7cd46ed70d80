"""Running relmsg's Alembic environment, also inside a revision of somebody else's."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.context
import alembic.op
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from relmsg.db.revisions import Revision, revisions
from relmsg.db.versions import OLDEST_TABLE, REVISION_TABLE, VERSION_TABLES, Recorded, present


def run(connection: Connection, schema: str, folder: Path, found: Recorded) -> list[str]:
    """Apply what lies between the revision found and the newest, in the connection's transaction, and record both
    versions; the revisions applied.
    """
    applied: list[str] = []
    config, scripts = _scripts(folder)

    def note(*, step: Any, **_: Any) -> None:
        applied.extend(step.up_revision_ids)

    altered = {table for revision in _after(found.revision, folder) for table in revision.alters}
    exists = connection.execute(
        text("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = :schema"), {"schema": schema}
    ).scalar()
    config.attributes.update(
        connection=connection,
        schema=schema,
        schema_exists=bool(exists),
        versions=present(connection, schema, VERSION_TABLES),
        altered=sorted(present(connection, schema, altered)),
        on_version_apply=note,
        indexes=[],
        **_recording(folder),
    )
    environment = EnvironmentContext(
        config, scripts, fn=lambda revision, _context: scripts._upgrade_revs("head", revision), destination_rev="head"
    )
    with _nested(), environment:
        scripts.run_env()
    return applied


def write(schema: str, folder: Path, since: str | None, output: io.StringIO) -> None:
    """Write what lies between that revision, or an empty database, and the newest as plain SQL."""
    config, scripts = _scripts(folder)
    todo = _after(since, folder)
    built = [index for revision in todo for index in revision.concurrent_indexes]
    config.attributes.update(
        connection=None,
        schema=schema,
        schema_exists=since is not None,
        # In plain SQL of an older database: relmsg 0.1 had one of them.
        versions=set() if since is None else {OLDEST_TABLE},
        altered=[] if since is None else sorted({table for revision in todo for table in revision.alters}),
        on_version_apply=lambda **_: None,
        indexes=[index.statement(schema, concurrently=False) for index in built] if since is None else [],
        **_recording(folder),
    )
    environment = EnvironmentContext(
        config,
        scripts,
        fn=lambda _revision, _context: scripts._upgrade_revs("head", since or "base"),
        as_sql=True,
        starting_rev=since,
        output_buffer=output,
        destination_rev="head",
    )
    with _nested(), environment:
        scripts.run_env()
    if since is not None:
        output.writelines(f"{index.statement(schema, concurrently=True)};\n\n" for index in built)


def _scripts(folder: Path) -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def _recording(folder: Path) -> dict[str, str]:
    newest = revisions(folder)[-1]
    return {
        "revision_table": REVISION_TABLE,
        "oldest_table": OLDEST_TABLE,
        "oldest_compatible": newest.oldest_compatible,
    }


def _after(found: str | None, folder: Path) -> tuple[Revision, ...]:
    known = revisions(folder)
    names = [revision.name for revision in known]
    return known[names.index(found) + 1 :] if found in names else known


@contextmanager
def _nested() -> Iterator[None]:
    """Let Alembic run inside a revision that Alembic runs: leaving a context empties ``alembic.op`` and
    ``alembic.context``, and the outer revision still needs them.
    """
    modules = (vars(alembic.op), vars(alembic.context))
    before = [dict(module) for module in modules]
    try:
        yield
    finally:
        for module, names in zip(modules, before, strict=True):
            module.update(names)
