"""The revisions that this code knows, read from the migrations' files without Alembic.

Each file of ``migrations/versions`` says of itself, in literals: ``revision``, ``down_revision``, ``oldest_compatible``
(the oldest revision whose code may work on the tables as this migration leaves them), ``alters`` (the tables on which
it takes locks that writers wait for) and ``concurrent_indexes`` (what is built after it without stopping anybody).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from relmsg.schema import quoted


@dataclass(frozen=True, slots=True)
class ConcurrentIndex:
    """An index that is built outside of a transaction, so that writers go on meanwhile."""

    name: str
    table: str
    columns: tuple[str, ...]
    predicate: str | None = None

    def statement(self, schema: str, *, concurrently: bool) -> str:
        """The statement that builds it; it fails where an index of that name exists."""
        where = f" WHERE {self.predicate}" if self.predicate else ""
        how = "CONCURRENTLY " if concurrently else ""
        return f"CREATE INDEX {how}{self.name} ON {quoted(schema, self.table)} ({', '.join(self.columns)}){where}"


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration, as its file tells of it."""

    name: str
    after: str | None
    oldest_compatible: str
    alters: tuple[str, ...] = ()
    concurrent_indexes: tuple[ConcurrentIndex, ...] = ()


def location() -> Path:
    """The folder of the Alembic environment: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    shipped = package / "migrations"
    return shipped if shipped.is_dir() else package.parent / "migrations"


@lru_cache
def revisions(folder: Path) -> tuple[Revision, ...]:
    """Every revision in the folder of the environment, the oldest first."""
    found = {revision.after: revision for revision in map(_read, sorted(folder.glob("versions/*.py")))}
    return tuple(_in_order(found))


def concurrent_indexes(folder: Path) -> tuple[ConcurrentIndex, ...]:
    """Every index of these revisions that is built without stopping writers."""
    return tuple(index for revision in revisions(folder) for index in revision.concurrent_indexes)


def _in_order(by_predecessor: dict[str | None, Revision]) -> Iterator[Revision]:
    after: str | None = None
    while (revision := by_predecessor.get(after)) is not None:
        yield revision
        after = revision.name


def _read(file: Path) -> Revision:
    said: dict[str, Any] = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
        and target.id in {"revision", "down_revision", "oldest_compatible", "alters", "concurrent_indexes"}
    }
    return Revision(
        name=said["revision"],
        after=said["down_revision"],
        oldest_compatible=said.get("oldest_compatible", said["revision"]),
        alters=tuple(said.get("alters", ())),
        concurrent_indexes=tuple(
            ConcurrentIndex(name, table, tuple(columns), predicate)
            for name, table, columns, predicate in said.get("concurrent_indexes", ())
        ),
    )
