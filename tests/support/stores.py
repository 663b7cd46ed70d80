"""Places where a service may keep its work: a database of the test's own in each of the kinds we promise."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.databases import Databases

KINDS = ("postgresql", "mariadb", "sqlite")


class Stores:
    """Makes databases of one kind, empty but for what a schema of their own holds, and removes them."""

    def __init__(self, request: pytest.FixtureRequest, kind: str, directory: Path) -> None:
        self._kind = kind
        self._databases: Databases = request.getfixturevalue("databases") if kind == "postgresql" else None
        self._mariadb_url: str = request.getfixturevalue("mariadb_url") if kind == "mariadb" else ""
        self._directory = directory

    async def create(self) -> str:
        """The URL of a new one."""
        name = f"relmsg_test_{uuid.uuid4().hex}"
        if self._kind == "sqlite":
            return f"sqlite+aiosqlite:///{self._directory / name}.db"
        if self._kind == "postgresql":
            return await self._databases.create()
        await self._execute(f"CREATE DATABASE {name}")
        return make_url(self._mariadb_url).set(database=name).render_as_string(hide_password=False)

    async def drop(self, url: str) -> None:
        """Remove it; all who used it must be gone."""
        if self._kind == "postgresql":
            await self._databases.drop(url)
        elif self._kind == "mariadb":
            await self._execute(f"DROP DATABASE {make_url(url).database}")

    async def _execute(self, statement: str) -> None:
        server = create_async_engine(self._mariadb_url, isolation_level="AUTOCOMMIT")
        async with server.connect() as connection:
            await connection.execute(text(statement))
        await server.dispose()
