"""A statement on the asyncpg connection under an SQLAlchemy one, in the same transaction.

SQLAlchemy's own execution costs the caller about 40 us of Python a statement, a third of what one message costs
(docs/decisions/0050). What it guarantees must hold here as well, so every failure is told to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Connection, Pool
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from relmsg.db.pooler import behind_pooler
from relmsg.exceptions import text_of

Transaction: TypeAlias = AsyncSession | AsyncConnection

_pooled: WeakKeyDictionary[Pool, bool] = WeakKeyDictionary()

# As SQLAlchemy's asyncpg dialect sorts them; the first that fits.
KINDS = (
    (asyncpg.IntegrityConstraintViolationError, "IntegrityError"),
    (asyncpg.SyntaxOrAccessError, "ProgrammingError"),
    (asyncpg.InternalServerError, "InternalServerError"),
    (asyncpg.InterfaceError, "InterfaceError"),
)


class Direct:
    """Runs statements that return nothing.

    asyncpg itself is only used in a transaction that SQLAlchemy has begun; the statement that begins one goes through
    SQLAlchemy's cursor, which sends BEGIN. After an error SQLAlchemy knows of it (its ``handle_error`` listeners, a
    lost connection), and after a cancellation the connection is invalid: a COMMIT that PostgreSQL would answer with a
    rollback never passes for one.
    """

    @staticmethod
    def begun(connection: Connection) -> bool:
        """Whether a transaction is open on the driver's connection: what ``execute`` needs."""
        return _driver(connection) is not None

    @staticmethod
    async def execute(tx: Transaction, connection: Connection, sql: str, args: Sequence[Any]) -> None:
        """Run a statement in the transaction that has begun on this connection of ``tx``.

        :raises DBAPIError: as SQLAlchemy would.
        """
        driver = _driver(connection)
        try:
            await _fetch(connection, driver, sql, args)
        except Exception as error:  # noqa: BLE001 - asyncpg's, and those of the socket below it
            failure = error
            await tx.run_sync(lambda _: _failed(connection, sql, failure))
        except BaseException:
            await tx.run_sync(lambda _: connection.invalidate())
            raise

    @staticmethod
    def execute_sync(connection: Connection, sql: str, args: Sequence[Any]) -> None:
        """The same where SQLAlchemy runs synchronous code; it may be the first statement of a transaction."""
        dbapi: Any = connection.connection
        try:
            driver = _driver(connection)
            if driver is None:
                cursor = dbapi.cursor()
                cursor.execute(sql, args)
                cursor.close()
            else:
                dbapi.dbapi_connection.run_async(lambda _: _fetch(connection, driver, sql, args))
        except Exception as error:  # noqa: BLE001 - the dialect's, asyncpg's, and those of the socket below it
            _failed(connection, sql, error)
        except BaseException:
            connection.invalidate()
            raise


def _driver(connection: Connection) -> Any:
    """The driver's connection, if a transaction is open there."""
    driver: Any = connection.connection.driver_connection
    return driver if isinstance(driver, asyncpg.Connection) and driver.is_in_transaction() else None


async def _fetch(connection: Connection, driver: Any, sql: str, args: Sequence[Any]) -> None:
    """Whether a pool leads through a pooler is asked once. There the statement has no name: asyncpg's names are not
    those that the engine may have been given for its pooler, and a name is not there on the next server connection."""
    pool = connection.engine.pool
    pooled = _pooled.get(pool)
    if pooled is None:
        pooled = _pooled[pool] = await behind_pooler(driver)
    if pooled:
        statement = await driver.prepare(sql, name="")
        await statement.fetch(*args)
    else:
        await driver.fetch(sql, *args)


def _failed(connection: Connection, sql: str, error: Exception) -> NoReturn:
    """Let SQLAlchemy meet the failure itself, then raise what it would have raised."""
    try:
        connection.exec_driver_sql("SELECT 1")
    except SQLAlchemyError:
        lost = connection.invalidated
    else:
        lost = False
    dbapi: Any = connection.dialect.loaded_dbapi
    translated: Any = error
    if not isinstance(error, dbapi.Error):
        kind = next((name for each, name in KINDS if isinstance(error, each)), "Error")
        translated = getattr(dbapi, kind)(f"{type(error)}: {text_of(error)}")
        translated.sqlstate = translated.pgcode = getattr(error, "sqlstate", None)
        translated.__cause__ = error
    raise DBAPIError.instance(
        sql, None, translated, dbapi.Error, connection_invalidated=lost, dialect=connection.dialect
    ) from translated
