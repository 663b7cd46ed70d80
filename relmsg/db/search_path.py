"""Makes every name in relmsg's own SQL mean what stands in ``pg_catalog``.

PostgreSQL looks for a function or an operator in all schemas of ``search_path`` and takes the one that fits the types
best. Whoever may create functions in one of them, as everybody may in ``public`` up to version 14, can so have code run
as the relay: ``unnest(bigint[])`` fits better than ``unnest(anyarray)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.db.pooler import Connector

SEARCH_PATH = "pg_catalog"
SET_LOCAL = f"SET LOCAL search_path = {SEARCH_PATH}"
CURRENT = "SELECT pg_catalog.current_setting(CAST('search_path' AS pg_catalog.text))"
RESTORE = "SELECT pg_catalog.set_config(CAST('search_path' AS pg_catalog.text), CAST(:before AS pg_catalog.text), true)"


class SearchPath:
    """Gives the transactions of an engine the search path ``pg_catalog`` where a pooler stands in the way.

    Otherwise it is a startup parameter. A pooler refuses that, or drops it; each transaction then begins with
    ``SET LOCAL``. Never ``SET``: it would stay on a server connection that somebody else gets next.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    @property
    def by_statement(self) -> bool:
        """Whether a statement has to set it; known once there was a connection."""
        return self._connector.pooled

    def attach(self, engine: AsyncEngine) -> None:
        """Watch for the transactions of this engine."""
        _paths[engine.sync_engine] = self
        event.listen(engine.sync_engine, "begin", self._begin)

    def _begin(self, connection: Connection) -> None:
        if self.by_statement:
            connection.exec_driver_sql(SET_LOCAL)


@contextmanager
def local_search_path(connection: Connection) -> Iterator[None]:
    """Within the block, this transaction has the search path ``pg_catalog``; after it, the one it had before.

    What ends the block is raised as it is: a cancellation, or the connection's loss.
    """
    before = connection.execute(text(CURRENT)).scalar_one()
    connection.execute(text(SET_LOCAL))
    try:
        yield
    except BaseException:
        with suppress(Exception):  # of any family: SQLAlchemy's own where the connection is gone
            if not connection.invalidated:
                connection.execute(text(RESTORE), {"before": before})
        raise
    with suppress(DBAPIError):  # the transaction has failed: whoever rolls it back has the old path again
        connection.execute(text(RESTORE), {"before": before})


def is_set_by_statement(engine: AsyncEngine) -> bool:
    """Whether statements on this engine need a transaction to have the search path; False for an engine of the user's,
    and before the first connection. A statement in autocommit has none then.
    """
    path = _paths.get(engine.sync_engine)
    return path is not None and path.by_statement


def equals(column: ColumnElement[Any], value: object) -> ColumnElement[bool]:
    """``column = value`` as PostgreSQL defines it, for a session of the user's: SQLAlchemy writes text as VARCHAR, for
    which PostgreSQL has no ``=`` of its own, so that anybody's would be taken first.
    """
    return column.bool_op("OPERATOR(pg_catalog.=)")(value)


_paths: WeakKeyDictionary[Engine, SearchPath] = WeakKeyDictionary()
