"""The moment after a COMMIT, on one asyncpg connection.

SQLAlchemy tells of a commit before it sends it (Core), or of a session's, which may be only a savepoint's in truth. The
driver is asked instead: its query log has the COMMIT once PostgreSQL has answered it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def after_commit(driver: Any, then: Callable[[], None]) -> Callable[[], None]:
    """Call ``then`` on the event loop once this asyncpg connection has committed, which it is about to do; if that
    fails, never. Returns a function that calls it off.
    """

    def logged(record: Any) -> None:
        if record.query.lstrip()[:6].upper() != "COMMIT":
            return
        call_off()
        if record.exception is None:
            then()

    def call_off() -> None:
        driver.remove_query_logger(logged)

    driver.add_query_logger(logged)
    return call_off
