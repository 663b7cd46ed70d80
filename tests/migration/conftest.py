"""A database in which nothing of relmsg stands yet."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from relmsg.database import create_engine
from tests.support.databases import Databases


@pytest.fixture
async def empty_url(databases: Databases) -> AsyncIterator[str]:
    """The URL of a new, empty database on the test server; it is dropped at the end."""
    url = await databases.create(empty=True)
    yield url
    await databases.drop(url)


@pytest.fixture
async def empty_engine(empty_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the empty database."""
    engine = create_engine(empty_url, poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()
