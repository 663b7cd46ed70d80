"""Places where a service may keep its work: a database of the test's own in each of the kinds we promise."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.databases import Databases

KINDS = ("postgresql", "mariadb", "sqlite")


class Stores:
    """Makes the URL of a new database of one kind, and removes it."""

    def __init__(self, request: pytest.FixtureRequest, kind: str, directory: Path) -> None:
        self.kind = kind
        self._databases: Databases = request.getfixturevalue("databases") if kind == "postgresql" else None
        self._mariadb_url: str = request.getfixturevalue("mariadb_url") if kind == "mariadb" else ""
        self._directory = directory

    @asynccontextmanager
    async def new(self) -> AsyncIterator[str]:
        """The URL; the database goes away with the block, whoever is still connected."""
        if self.kind == "sqlite":
            yield f"sqlite+aiosqlite:///{self._directory / uuid.uuid4().hex}.db"
        elif self.kind == "postgresql":
            url = await self._databases.create()
            yield url
            await self._databases.drop(url)
        else:
            name = f"relmsg_test_{uuid.uuid4().hex}"
            server = create_async_engine(self._mariadb_url, isolation_level="AUTOCOMMIT")
            async with server.connect() as connection:
                await connection.execute(text(f"CREATE DATABASE {name}"))
                yield make_url(self._mariadb_url).set(database=name).render_as_string(hide_password=False)
                await connection.execute(text(f"DROP DATABASE {name}"))
            await server.dispose()
