"""The moment after a COMMIT, on one asyncpg connection.

SQLAlchemy tells of a commit before it sends it (Core), or of a session's, which may be only a savepoint's in truth. The
driver is asked instead: its query log has the COMMIT once PostgreSQL has answered it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class CommitWatch:
    """Calls ``then`` on the event loop once this asyncpg connection has committed, which it is about to do; if that
    fails, never.

    An object, for functions that know each other would be left to the garbage collector, one pair a transaction.
    """

    __slots__ = ("_driver", "_then")

    def __init__(self, driver: Any, then: Callable[[], None]) -> None:
        self._driver = driver
        self._then = then
        driver.add_query_logger(self)

    def __call__(self, record: Any) -> None:
        """The driver has run a statement."""
        if record.query.lstrip()[:6].upper() != "COMMIT":
            return
        self.call_off()
        if record.exception is None:
            self._then()

    def call_off(self) -> None:
        """Do not call any more."""
        self._driver.remove_query_logger(self)
