"""What a database says of the version of its tables: the revision they are at, and the oldest that may work on them.

Two tables of one row. ``relmsg_revision`` has the revision that was applied last; Alembic keeps it. ``relmsg_version``
has the oldest revision whose code may work on the tables. relmsg 0.1, which knows only the second table and accepts
nothing but its own revision in it, works on newer tables for as long as they are made for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, text

from relmsg.db.revisions import Revision
from relmsg.schema import quoted

OLDEST_TABLE = "relmsg_version"
REVISION_TABLE = "relmsg_revision"
VERSION_TABLES = (OLDEST_TABLE, REVISION_TABLE)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The versions that a schema records; both None where it records none."""

    revision: str | None
    oldest: str | None

    def is_newer(self, known: tuple[Revision, ...]) -> bool:
        """Whether code that knows these revisions may not work on the tables: they have left it behind."""
        return self.oldest is not None and self.oldest not in _names(known)

    def is_ahead(self, known: tuple[Revision, ...]) -> bool:
        """Whether newer code has changed the tables, and code that knows these revisions may still work on them."""
        return self.oldest in _names(known) and self.revision not in _names(known)


def recorded(connection: Connection, schema: str) -> Recorded:
    """Read both. Tables made by relmsg 0.1 have one record, which is both."""
    there = present(connection, schema, VERSION_TABLES)
    oldest = _read(connection, schema, OLDEST_TABLE) if OLDEST_TABLE in there else None
    if oldest is None:
        return Recorded(None, None)
    revision = _read(connection, schema, REVISION_TABLE) if REVISION_TABLE in there else None
    return Recorded(revision or oldest, oldest)


def present(connection: Connection, schema: str, names: Iterable[str]) -> set[str]:
    """Which of these tables exist in the schema."""
    found = connection.execute(
        text(
            "SELECT relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace "
            "WHERE n.nspname = :schema AND c.relname = ANY(CAST(:names AS text[]))"
        ),
        {"schema": schema, "names": list(names)},
    )
    return set(found.scalars())


def _read(connection: Connection, schema: str, table: str) -> str | None:
    name = quoted(schema, table).replace(":", "\\:")
    versions = connection.execute(text(f"SELECT version_num FROM {name}")).scalars()  # noqa: S608
    return max(map(str, versions), default=None)


def _names(known: tuple[Revision, ...]) -> set[str]:
    return {revision.name for revision in known}
