"""Tells whether a connection was lost by what its handler did, or with those of everybody else."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from relmsg.db.failures import sqlstate
from relmsg.exceptions import causes

CRASH = "57P02"  # what the server tells all the others when one of its processes has crashed
TOLD_SECONDS = 1.0


class Witness:
    """A second connection, open beside the handler's, that sees what happens to connections in general.

    If the handler's connection is lost and this one stands, the handler has lost it. When a server process crashes,
    PostgreSQL ends all others and tells each why (57P02), before it starts again; the one that crashed can tell its
    client nothing. So a handler has crashed the server if the witness was told of a crash, and the handler's connection
    was not. In a restart all are told something else (57P01), and a network that breaks tells nobody anything: then
    nobody is accused. Nor is anybody through a pooler, which tells nothing on.

    It is no connection of the pool, which may have none to spare.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._raw: PoolProxiedConnection | None = None
        self._crashed = asyncio.Event()
        self._was_told = False

    @staticmethod
    def can_see(connection: Connection) -> bool:
        """Whether the driver of this connection hands on what the server tells."""
        return hasattr(connection.connection.driver_connection, "add_log_listener")

    async def open(self, connection: Connection) -> None:
        """Connect as this connection of the session has been, and hear from now on what the server tells both."""
        await self._session.run_sync(self._connect, connection)
        assert self._raw is not None
        for raw, note in ((self._raw, self._heard), (connection.connection, self._told)):
            driver: Any = raw.driver_connection
            driver.add_log_listener(note)

    async def close(self) -> None:
        """Close the connection."""
        if self._raw is not None:
            with suppress(Exception):
                await self._session.run_sync(self._disconnect)

    async def accuses(self, error: BaseException) -> bool:
        """Whether the handler whose connection ended with this error has lost it by what it did."""
        with suppress(TimeoutError):  # it ends one connection after the other
            async with asyncio.timeout(TOLD_SECONDS):
                await self._crashed.wait()
        if self._crashed.is_set():
            told = self._was_told or any(sqlstate(each) == CRASH for each in causes(error))
            return not told
        with suppress(TimeoutError):
            async with asyncio.timeout(TOLD_SECONDS):
                return await self._stands()
        return False

    def _connect(self, _: Session, connection: Connection) -> None:
        self._raw = connection.engine.pool.recreate().connect()

    def _disconnect(self, _: Session) -> None:
        if self._raw is not None:
            self._raw.invalidate()

    async def _stands(self) -> bool:
        driver: Any = self._raw.driver_connection if self._raw is not None else None
        if driver is None or driver.is_closed():
            return False
        try:
            await driver.execute("SELECT 1")
        except Exception:  # noqa: BLE001 - lost with the handler's
            return False
        return True

    def _heard(self, _: object, message: object) -> None:
        if getattr(message, "sqlstate", None) == CRASH:
            self._crashed.set()

    def _told(self, _: object, message: object) -> None:
        if getattr(message, "sqlstate", None) == CRASH:
            self._was_told = True
