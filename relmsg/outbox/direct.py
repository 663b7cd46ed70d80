"""A statement on the asyncpg connection under an SQLAlchemy one, in the same transaction.

SQLAlchemy's own execution costs the caller about 40 us of Python a statement, a third of what one message costs
(docs/decisions/0050). What it guarantees must hold here as well, so every failure is told to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

# As SQLAlchemy's asyncpg dialect sorts them; the first that fits.
KINDS = (
    (asyncpg.IntegrityConstraintViolationError, "IntegrityError"),
    (asyncpg.SyntaxOrAccessError, "ProgrammingError"),
    (asyncpg.InternalServerError, "InternalServerError"),
    (asyncpg.InterfaceError, "InterfaceError"),
)


class Direct:
    """Runs statements that return nothing.

    The driver is only used in a transaction that SQLAlchemy has begun; the statement that begins one goes through
    SQLAlchemy. After an error SQLAlchemy knows of it (its ``handle_error`` listeners, a lost connection), and after a
    cancellation the connection is invalid: a COMMIT that PostgreSQL would answer with a rollback never passes for one.
    """

    @staticmethod
    async def execute(connection: AsyncConnection, sql: str, args: Sequence[Any]) -> None:
        """Run a statement.

        :raises DBAPIError: as SQLAlchemy would.
        """
        driver = _driver(connection.sync_connection)
        if driver is None:
            await connection.exec_driver_sql(sql, tuple(args))
            return
        try:
            await driver.fetch(sql, *args)
        except Exception as error:  # noqa: BLE001 - asyncpg's, and those of the socket below it
            await connection.run_sync(_failed, sql, error)
        except BaseException:
            await connection.invalidate()
            raise

    @staticmethod
    def execute_sync(connection: Connection, sql: str, args: Sequence[Any]) -> None:
        """The same inside of SQLAlchemy's events."""
        driver = _driver(connection)
        if driver is None:
            connection.exec_driver_sql(sql, tuple(args))
            return
        try:
            connection.connection.dbapi_connection.run_async(lambda _: driver.fetch(sql, *args))  # type: ignore[union-attr]
        except Exception as error:  # noqa: BLE001 - asyncpg's, and those of the socket below it
            _failed(connection, sql, error)
        except BaseException:
            connection.invalidate()
            raise


def _driver(connection: Connection | None) -> Any:
    """The driver's connection, if a transaction is open there."""
    assert connection is not None
    driver: Any = connection.connection.driver_connection
    return driver if isinstance(driver, asyncpg.Connection) and driver.is_in_transaction() else None


def _failed(connection: Connection, sql: str, error: Exception) -> NoReturn:
    """Let SQLAlchemy meet the failure itself, then raise what it would have raised."""
    try:
        connection.exec_driver_sql("SELECT 1")
    except SQLAlchemyError:
        lost = connection.invalidated
    else:
        lost = False
    dbapi: Any = connection.dialect.loaded_dbapi
    kind = next((name for each, name in KINDS if isinstance(error, each)), "Error")
    translated = getattr(dbapi, kind)(f"{type(error)}: {error}")
    translated.sqlstate = translated.pgcode = getattr(error, "sqlstate", None)
    translated.__cause__ = error
    raise DBAPIError.instance(
        sql, None, translated, dbapi.Error, connection_invalidated=lost, dialect=connection.dialect
    ) from translated
