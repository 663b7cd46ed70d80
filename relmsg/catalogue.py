"""What stands in PostgreSQL's catalogue, compared with the tables of ``relmsg.schema``, one line a difference.

Alembic's comparison sees neither the predicate of a partial index nor storage options, on which the relay's speed
rests. Here the expected tables are created as temporary ones and rolled back, so that PostgreSQL itself writes both
sides of each expression; both are read from pg_catalog and compared.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import CheckConstraint, Connection, MetaData, Table, select, text
from sqlalchemy.exc import DBAPIError

from relmsg.schema import SLOTS, tables

logger = logging.getLogger(__name__)

UNKNOWN = "…"  # an expression that only PostgreSQL could have written; equal to any other
SHARED_SCHEMAS = {"public"}  # where tables of others are no surprise

# Every query takes :namespace (oid) and gives: table, kind, name, then attributes by their column names.
TABLES = """
SELECT c.relname AS of, 'table' AS kind, c.relname AS name,
       CASE c.relkind WHEN 'r' THEN 'plain' ELSE 'partitioned' END AS form,
       CASE c.relpersistence WHEN 'u' THEN 'unlogged' ELSE 'logged' END AS storage,
       CASE WHEN c.relrowsecurity THEN 'on' ELSE 'off' END AS "row security",
       array_to_string(ARRAY(SELECT unnest(c.reloptions) ORDER BY 1), ', ') AS "storage options"
FROM pg_catalog.pg_class c
WHERE c.relnamespace = :namespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
COLUMNS = """
SELECT c.relname AS of, 'column' AS kind, c.relname || '.' || a.attname AS name,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       CASE WHEN a.attnotnull THEN 'not null' ELSE 'null' END AS nullability,
       CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) END AS "default",
       CASE WHEN a.attgenerated <> '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) END
           AS "generated expression",
       CASE a.attidentity WHEN 'a' THEN 'always' WHEN 'd' THEN 'by default' END
           || (SELECT format(', start %s increment %s cache %s', s.seqstart, s.seqincrement, s.seqcache)
               || CASE WHEN s.seqcycle THEN ' cycle' ELSE '' END
               FROM pg_catalog.pg_depend p JOIN pg_catalog.pg_sequence s ON s.seqrelid = p.objid
               WHERE p.classid = 'pg_catalog.pg_class'::regclass AND p.refclassid = p.classid
                 AND p.refobjid = c.oid AND p.refobjsubid = a.attnum AND p.deptype = 'i') AS identity
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relnamespace = :namespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attnum > 0 AND NOT a.attisdropped
"""
INDEXES = """
SELECT c.relname AS of, 'index' AS kind, x.relname AS name,
       c.relname AS "table", m.amname AS method,
       (SELECT string_agg(pg_catalog.pg_get_indexdef(i.indexrelid, n, true)
                          || CASE WHEN n > i.indnkeyatts THEN ' (included)'
                                  WHEN i.indoption[n - 1] & 1 = 1 THEN ' DESC' ELSE '' END, ', ' ORDER BY n)
        FROM generate_series(1, i.indnatts) n) AS columns,
       CASE WHEN i.indisunique THEN 'unique' ELSE 'not unique' END AS uniqueness,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid, true) AS predicate,
       CASE WHEN i.indisvalid THEN 'valid' ELSE 'invalid' END AS state,
       array_to_string(ARRAY(SELECT unnest(x.reloptions) ORDER BY 1), ', ') AS "storage options"
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_am m ON m.oid = x.relam
WHERE c.relnamespace = :namespace AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
                  WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
"""
# Type n, NOT NULL as a constraint of its own, exists from PostgreSQL 18 on; the column says it already.
CONSTRAINTS = """
SELECT c.relname AS of, 'constraint' AS kind, c.relname || '.' || k.conname AS name,
       pg_catalog.pg_get_constraintdef(k.oid, true) AS definition
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = :namespace AND NOT c.relispartition AND k.contype IN ('p', 'u', 'f', 'c', 'x')
"""


@dataclass(frozen=True, slots=True)
class Thing:
    """A table, column, index or constraint, with what is compared of it."""

    of: str
    kind: str
    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def differences(connection: Connection, schema: str, version_tables: Collection[str]) -> list[str]:
    """One line for each way in which the schema differs from ``relmsg.schema``; nothing is changed.

    The user needs SELECT on outbox_slot. Where temporary tables are not allowed (permission, or a standby), expressions
    and predicates are compared by their presence only, and a warning is logged.
    """
    namespace = connection.execute(
        text("SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = :schema"), {"schema": schema}
    ).scalar()
    if namespace is None:
        return [f"schema {schema} is missing"]
    expected = _expected(connection)
    present = [
        thing
        for thing in _snapshot(connection, namespace)
        if thing.of not in version_tables and (thing.of in {t.of for t in expected} or schema not in SHARED_SCHEMAS)
    ]
    return [*_compare(expected, present), *_slots(connection, schema, present)]


def _snapshot(connection: Connection, namespace: int) -> list[Thing]:
    things = []
    for query in (TABLES, COLUMNS, INDEXES, CONSTRAINTS):
        for row in connection.execute(text(query), {"namespace": namespace}).mappings():
            attributes = {k: (str(v) if v else None) for k, v in row.items() if k not in ("of", "kind", "name")}
            things.append(Thing(str(row["of"]), str(row["kind"]), str(row["name"]), attributes))
    return things


def _expected(connection: Connection) -> list[Thing]:
    metadata = tables("pg_temp").metadata
    savepoint = connection.begin_nested()
    try:
        metadata.create_all(connection, checkfirst=False)
        namespace = connection.execute(text("SELECT pg_catalog.pg_my_temp_schema()")).scalar_one()
        names = {table.name for table in metadata.tables.values()}
        return [thing for thing in _snapshot(connection, namespace) if thing.of in names]
    except DBAPIError as error:
        # 42501 insufficient_privilege, 25006 read_only_sql_transaction
        if getattr(error.orig, "sqlstate", None) not in ("42501", "25006"):
            raise
        logger.warning(
            "expressions and predicates are compared by their presence only: temporary tables are not allowed here"
        )
    finally:
        savepoint.rollback()
    return list(_from_metadata(connection, metadata))


def _from_metadata(connection: Connection, metadata: MetaData) -> Iterable[Thing]:
    """What the definition says without PostgreSQL's help; expressions are UNKNOWN."""
    for table in metadata.tables.values():
        stored = table.info.get("storage_options") or table.kwargs.get("postgresql_with") or {}
        options = ", ".join(sorted(f"{k}={v}" for k, v in stored.items()))
        yield Thing(
            table.name,
            "table",
            table.name,
            {"form": "plain", "storage": "logged", "row security": "off", "storage options": options or None},
        )
        for column in table.columns:
            generated = column.computed is not None
            yield Thing(
                table.name,
                "column",
                f"{table.name}.{column.name}",
                {
                    "type": column.type.compile(connection.dialect).lower(),
                    "nullability": "null" if column.nullable else "not null",
                    "default": UNKNOWN if column.server_default is not None and not generated else None,
                    "generated expression": UNKNOWN if generated else None,
                    "identity": UNKNOWN if column.identity is not None else None,
                }
                | ({"default": None} if column.identity is not None else {}),
            )
        yield from _indexes_from_metadata(table)


def _indexes_from_metadata(table: Table) -> Iterable[Thing]:
    key = ", ".join(column.name for column in table.primary_key.columns)
    yield Thing(table.name, "constraint", f"{table.name}.{table.name}_pkey", {"definition": f"PRIMARY KEY ({key})"})
    for check in sorted(str(each.name) for each in table.constraints if isinstance(each, CheckConstraint)):
        yield Thing(table.name, "constraint", f"{table.name}.{check}", {"definition": UNKNOWN})
    for index in table.indexes:
        yield Thing(
            table.name,
            "index",
            str(index.name),
            {
                "table": table.name,
                "method": "btree",
                "columns": ", ".join(column.name for column in index.columns),
                "uniqueness": "unique" if index.unique else "not unique",
                "predicate": UNKNOWN if index.kwargs.get("postgresql_where") is not None else None,
                "state": "valid",
                "storage options": None,
            },
        )


def _compare(expected: list[Thing], present: list[Thing]) -> Iterable[str]:
    wanted = {str(thing): thing for thing in expected}
    found = {str(thing): thing for thing in present}
    whole = {thing.of for thing in expected if f"table {thing.of}" in found}
    known = {thing.of for thing in expected}
    for name, thing in wanted.items():
        if name not in found:
            if thing.kind == "table" or thing.of in whole:
                yield f"{name} is missing"
            continue
        for attribute, value in thing.attributes.items():
            real = found[name].attributes.get(attribute)
            if value != real and not (value == UNKNOWN and real is not None):
                yield f"{name}: {attribute} is {real or 'none'}, expected {value or 'none'}"
    for name, thing in found.items():
        if name not in wanted and (thing.kind == "table" or thing.of in known):
            yield f"{name} is extra"


def _slots(connection: Connection, schema: str, present: list[Thing]) -> Iterable[str]:
    names = {str(thing) for thing in present}
    if not {"table outbox_slot", "column outbox_slot.slot"} <= names:
        return
    rows = set(connection.execute(select(tables(schema).outbox_slot.c.slot)).scalars())
    if rows != set(range(SLOTS)):
        off = sorted(rows ^ set(range(SLOTS)))
        yield (
            f"table outbox_slot: has {len(rows)} rows, expected {SLOTS} (0 to {SLOTS - 1}); "
            f"missing or extra: {', '.join(map(str, off[:10]))}{' …' if len(off) > 10 else ''}"
        )
