"""Alembic's entry. ``relmsg.migrate`` calls it with the connection (or none, for plain SQL) and the schema's name."""

from alembic import context
from sqlalchemy import text
from sqlalchemy.schema import CreateSchema

asked = context.config.attributes
schema: str = asked["schema"]

context.configure(
    connection=asked["connection"],
    # Only for plain SQL: asyncpg's dialect, because those of other drivers write % in a name twice.
    url=None if asked["connection"] is not None else "postgresql+asyncpg://",
    version_table=asked["version_table"],
    version_table_schema=schema,
    on_version_apply=asked["on_version_apply"],
)

with context.begin_transaction():
    context.execute(text("SET LOCAL lock_timeout = '1s'"))
    # CREATE SCHEMA IF NOT EXISTS asks for the CREATE permission on the database even where the schema exists.
    if context.is_offline_mode() or not asked["schema_exists"]:
        context.execute(CreateSchema(schema, if_not_exists=True))
    context.run_migrations()
