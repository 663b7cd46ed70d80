"""A database of its own for each test, cloned from one that has relmsg's tables."""

from __future__ import annotations

import contextlib
import uuid

import asyncpg
from sqlalchemy import make_url

from relmsg.migrate import upgrade

PREFIX = "relmsg_test_"


class Databases:
    """Clones of a template that is migrated once. Names carry a chance part: sessions do not meet on one server."""

    def __init__(self, server_url: str) -> None:
        self._url = make_url(server_url)
        self._session = f"{PREFIX}{uuid.uuid4().hex[:8]}"
        self._template = f"{self._session}_template"

    async def migrate_template(self) -> None:
        """Make the template; call once, first."""
        await self._execute(f'CREATE DATABASE "{self._template}" TEMPLATE template0')
        await upgrade(self._named(self._template))

    async def create(self, *, empty: bool = False) -> str:
        """The URL of a new database in which the schema ``relmsg`` is up to date and empty, or which itself is."""
        name = f"{self._session}_{uuid.uuid4().hex[:8]}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{"template0" if empty else self._template}"')
        return self._named(name)

    async def drop(self, url: str) -> None:
        """Drop it, whoever is still connected. A server that a test has stopped is forgiven: ``drop_all`` comes."""
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    async def drop_all(self) -> None:
        """Drop what this session made and has not dropped, the template too."""
        connection = await self._connect()
        try:
            names = await connection.fetch(
                "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", self._session
            )
            for row in names:
                await connection.execute(f'DROP DATABASE IF EXISTS "{row["datname"]}" WITH (FORCE)')
        finally:
            await connection.close()

    def _named(self, database: str) -> str:
        return self._url.set(database=database).render_as_string(hide_password=False)

    async def _connect(self) -> asyncpg.Connection:
        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        return await asyncpg.connect(url, timeout=10)

    async def _execute(self, statement: str) -> None:
        connection = await self._connect()
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
