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
from sqlalchemy import Connection

from relmsg.db.revisions import revisions
from relmsg.db.versions import OLDEST_TABLE, REVISION_TABLE, VERSION_TABLES, present


def run(
    connection: Connection | None,
    schema: str,
    folder: Path,
    target: str,
    *,
    schema_exists: bool = False,
    output: io.StringIO | None = None,
) -> list[str]:
    """Apply what lies between the schema's revision and the target, in the connection's transaction; the revisions
    applied. Without a connection it is written to ``output`` as plain SQL for an empty database.
    """
    applied: list[str] = []
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = {revision.name: revision for revision in revisions(folder)}

    def note(*, step: Any, **_: Any) -> None:
        applied.extend(step.up_revision_ids)

    altered = {table for revision in known.values() for table in revision.alters}
    config.attributes.update(
        connection=connection,
        schema=schema,
        schema_exists=schema_exists,
        revision_table=REVISION_TABLE,
        oldest_table=OLDEST_TABLE,
        oldest_compatible=known[target].oldest_compatible,
        versions=set() if connection is None else present(connection, schema, VERSION_TABLES),
        altered=[] if connection is None else sorted(present(connection, schema, altered)),
        on_version_apply=note,
    )
    environment = EnvironmentContext(
        config,
        scripts,
        fn=lambda revision, _context: scripts._upgrade_revs(target, revision),
        as_sql=connection is None,
        output_buffer=output,
        destination_rev=target,
    )
    with _nested(), environment:
        scripts.run_env()
    return applied


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
