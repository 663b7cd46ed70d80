"""Alembic's entry. ``relmsg.db.alembic_run`` calls it with the connection (or none, for plain SQL) and the schema.

``relmsg_revision`` is Alembic's own version table here. ``relmsg_version``, which was that in relmsg 0.1, has the
oldest revision whose code may work on the tables (see relmsg/db/versions.py).
"""
# ruff: noqa: S608 - no name here comes from outside but the schema's, which is quoted

from alembic import context
from sqlalchemy import text
from sqlalchemy.schema import CreateSchema

asked = context.config.attributes
schema: str = asked["schema"]
LOCK_WAIT = "500ms"  # writers queue behind us for as long

context.configure(
    connection=asked["connection"],
    # Only for plain SQL: asyncpg's dialect, because those of other drivers write % in a name twice.
    url=None if asked["connection"] is not None else "postgresql+asyncpg://",
    version_table=asked["revision_table"],
    version_table_schema=schema,
    on_version_apply=asked["on_version_apply"],
)


def in_schema(table: str) -> str:
    quoted = schema.replace('"', '""')
    return f'"{quoted}".{table}'.replace(":", "\\:")


def execute(statement: str) -> None:
    context.execute(text(statement))


def create_version_table(table: str) -> None:
    execute(
        f"CREATE TABLE IF NOT EXISTS {in_schema(table)} "
        f"(version_num VARCHAR(32) NOT NULL, CONSTRAINT {table}_pkc PRIMARY KEY (version_num))"
    )


def await_vacuum() -> None:
    """Have an autovacuum end that works on what is altered; writers do not wait behind this lock.

    PostgreSQL ends an autovacuum for a session that has waited for it for deadlock_timeout, a second: longer than we
    may have writers wait behind us.
    """
    if asked["altered"]:
        execute("SET LOCAL lock_timeout = '10s'")
        for table in asked["altered"]:
            execute(f"LOCK TABLE {in_schema(table)} IN SHARE UPDATE EXCLUSIVE MODE")


def adopt() -> None:
    """Take over from relmsg 0.1: what it recorded is the revision."""
    ours, theirs = asked["revision_table"], asked["oldest_table"]
    if theirs in asked["versions"] and ours not in asked["versions"]:
        create_version_table(ours)
        execute(
            f"INSERT INTO {in_schema(ours)} SELECT version_num FROM {in_schema(theirs)} "
            f"WHERE NOT EXISTS (SELECT FROM {in_schema(ours)})"
        )


def record_oldest() -> None:
    oldest = asked["oldest_compatible"]
    table = in_schema(asked["oldest_table"])
    create_version_table(asked["oldest_table"])
    execute(f"DELETE FROM {table} WHERE version_num <> '{oldest}'")
    execute(f"INSERT INTO {table} (version_num) VALUES ('{oldest}') ON CONFLICT DO NOTHING")
    execute(f"COMMENT ON TABLE {table} IS 'the oldest revision whose code may work on these tables'")
    execute(f"COMMENT ON TABLE {in_schema(asked['revision_table'])} IS 'the revision these tables are at'")
    # Every process reads them at its start, those too that were granted their rights before the second one existed.
    execute(f"GRANT SELECT ON {table}, {in_schema(asked['revision_table'])} TO PUBLIC")


with context.begin_transaction():
    if context.is_offline_mode():  # otherwise the caller has set it, and takes it back
        execute("SET LOCAL search_path = pg_catalog")
    await_vacuum()
    execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
    # CREATE SCHEMA IF NOT EXISTS asks for the CREATE permission on the database even where the schema exists.
    if not asked["schema_exists"]:
        context.execute(CreateSchema(schema, if_not_exists=True))
    adopt()
    context.run_migrations()
    for statement in asked["indexes"]:
        execute(statement.replace(":", "\\:"))
    record_oldest()
