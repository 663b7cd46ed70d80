"""Working through a pooler that lends its server connections by the transaction, as PgBouncer does in transaction mode.

There a session is nobody's: a prepared statement is missing on the next server connection or there already, what SET
has set meets somebody else, LISTEN listens for nobody. So through a pooler statements have no name, settings are those
of a transaction, and nothing listens. How a pooler shares its connections cannot be asked, so each counts as one that
shares them by the transaction.
"""

from __future__ import annotations

import logging
from typing import Any

import asyncpg

from relmsg.exceptions import text_of

log = logging.getLogger(__name__)

UNSUPPORTED = "unsupported startup parameter"  # PgBouncer's words
# So that the server ends a session whose process, host or network has vanished, and frees what it holds: it notices the
# silence of the network after 60 s. No transaction of ours on these sessions waits for anything but the database.
UNTIL_VANISHED = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "idle_in_transaction_session_timeout": "60000",
}
ALWAYS_TAKEN = ("application_name", "client_encoding", "datestyle", "timezone")


async def behind_pooler(connection: Any) -> bool:
    """Whether a pooler stands between this asyncpg connection and PostgreSQL.

    The process id that a client is told when it connects is that of the server process; a pooler tells one of its own
    making, since that of the server process would change under the client. The statement has no name, so that it works
    through any pooler.
    """
    statement = await connection.prepare("SELECT pg_catalog.pg_backend_pid()", name="")
    return bool(await statement.fetchval() != connection.get_server_pid())


class Connector:
    """Opens the asyncpg connections of one SQLAlchemy engine, and finds out whether they lead through a pooler.

    ``connect_args`` are for ``create_async_engine``. A connection costs one round trip more than without; a direct one
    is otherwise as it would be. Through a pooler statements are sent without names, whole each time, which every kind
    of pooling bears, and startup parameters that the pooler refuses are left out, with a warning.
    """

    def __init__(self) -> None:
        self.pooled = False
        self._refused = False

    @property
    def connect_args(self) -> dict[str, Any]:
        """What makes an engine connect this way."""
        return {"async_creator_fn": self.connect, "prepared_statement_name_func": self._statement_name}

    async def connect(self, *args: Any, **options: Any) -> Any:
        """As ``asyncpg.connect``."""
        if not self.pooled:
            connection = await self._open(*args, **options)
            try:
                if not await behind_pooler(connection):
                    return connection
            except BaseException:
                connection.terminate()
                raise
            self.pooled = True
            await connection.close()
        return await self._open(*args, **options | {"statement_cache_size": 0})

    async def _open(self, *args: Any, **options: Any) -> Any:
        if not self._refused:
            try:
                return await asyncpg.connect(*args, **options)
            except asyncpg.PostgresError as error:
                if UNSUPPORTED not in text_of(error):
                    raise
                refused = set(options.get("server_settings") or {}) - set(ALWAYS_TAKEN)
                if not refused:
                    raise
                self._refused = True
                # Each transaction sets the search_path (search_path.py), and the pooler's sessions are the pooler's.
                if left_out := sorted(refused - {"search_path", *UNTIL_VANISHED}):
                    log.warning(
                        "%s: this pooler takes no startup parameters, so %s are not set; set them for the role: "
                        "ALTER ROLE … SET",
                        text_of(error),
                        ", ".join(left_out),
                    )
        settings = {name: value for name, value in options["server_settings"].items() if name in ALWAYS_TAKEN}
        return await asyncpg.connect(*args, **options | {"server_settings": settings})

    def _statement_name(self) -> str | None:
        return "" if self.pooled else None
