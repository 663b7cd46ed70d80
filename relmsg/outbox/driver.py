"""One asyncpg connection out of an SQLAlchemy engine, kept up: what the relay's hot path talks to.

SQLAlchemy Core would cost about 10 us for each row read (performance.md C), which is as much as the broker itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from relmsg.broker.answer import really_cancelled
from relmsg.database import READ_COMMITTED
from relmsg.db.contention import LASTING_SECONDS, past_contention
from relmsg.db.failures import is_contention, is_refusal, waited_for
from relmsg.db.pooler import behind_pooler
from relmsg.db.search_path import SET_LOCAL, is_set_by_statement
from relmsg.errors import DatabaseAway

PLANNED_EACH_TIME = ("plan_cache_mode = force_custom_plan", "jit_above_cost = -1")
PLANNED_ONCE = (
    "plan_cache_mode = force_generic_plan",
    "jit_above_cost = -1",
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "enable_sort = off",
)


class Driver:
    """Runs statements on one driver connection, one at a time, each in a transaction of its own (autocommit).

    After an error the connection is thrown away and the next statement gets a new one, unless a constraint or a trigger
    of the user's has refused the statement. Every statement has a deadline: asyncpg itself would wait for ever for a
    server that is frozen.

    ``planning`` is PLANNED_EACH_TIME: a statement that was planned for an empty table would otherwise keep a sequential
    scan when thousands of rows arrive (performance.md, plan-cache trap), and compiling what is planned anew each time
    takes longer than running it. Or it is PLANNED_ONCE, for statements to which one index is always right: planning is
    half of what a poll of an empty outbox costs, and with nothing else to choose from no plan can be the wrong one.

    Through a pooler the session is not ours: each statement then has a transaction that sets all this for itself, and
    no name. That takes four round trips instead of one (docs/decisions/0150).
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        deadline: float = 30.0,
        planning: Sequence[str] = PLANNED_EACH_TIME,
    ) -> None:
        self._engine = engine
        self._planning = planning
        self._deadline = deadline
        self._connection: AsyncConnection | None = None
        self._raw: Any = None
        self._pooled = False
        self._lock = asyncio.Lock()

    async def fetch(self, sql: str, *args: object) -> Sequence[Any]:
        """The rows of a statement.

        :raises DatabaseAway: there is no connection, it was lost, no answer came in time, or the server refuses the
            statement for a reason that passes (``waited_for``).
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._deadline):
                    raw = self._raw or await self._connect()
                    records: Sequence[Any] = await self._fetched(raw, sql, args)
            except asyncio.CancelledError as error:
                await self._drop()
                if really_cancelled():
                    raise
                raise DatabaseAway("the connection to PostgreSQL was lost") from error
            except TimeoutError as error:
                await self._drop()
                raise DatabaseAway(f"PostgreSQL did not answer within {self._deadline:g} s") from error
            except Exception as error:
                if self._pooled or not is_refusal(error):  # a refusal leaves the connection as it was
                    await self._drop()
                meant = waited_for(error)
                if meant is None or meant is error:
                    raise
                raise meant from error
            return records

    def abort(self) -> None:
        """Cut the connection: a statement that is under way fails, and the server is asked nothing more."""
        if self._raw is not None:
            self._raw.terminate()

    async def close(self) -> None:
        """Give the connection back."""
        async with self._lock:
            await self._drop()

    async def _fetched(self, raw: Any, sql: str, args: Sequence[object]) -> Sequence[Any]:
        """The rows; where another transaction was in the way, which has rolled the statement back, it is sent again.

        That ends before the deadline does, which would say that the server is silent.
        """
        try:
            return await self._fetch(raw, sql, args)
        except Exception as error:
            if not is_contention(error) or raw.is_closed():
                raise
        seconds = min(LASTING_SECONDS, self._deadline / 2)
        return await past_contention(lambda: self._fetch(raw, sql, args), seconds=seconds)

    async def _fetch(self, raw: Any, sql: str, args: Sequence[object]) -> Sequence[Any]:
        if not self._pooled:
            return await raw.fetch(sql, *args)  # type: ignore[no-any-return]
        settings = "; ".join(f"SET LOCAL {each}" for each in self._planning)
        await raw.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; {SET_LOCAL}; {settings}")
        statement = await raw.prepare(sql, name="")
        records: Sequence[Any] = await statement.fetch(*args)
        await raw.execute("COMMIT")
        return records

    async def _connect(self) -> Any:
        self._connection = await self._engine.connect()
        self._raw = (await self._connection.get_raw_connection()).driver_connection
        self._pooled = is_set_by_statement(self._engine) or await behind_pooler(self._raw)
        if not self._pooled:
            await self._raw.execute("; ".join([READ_COMMITTED, *(f"SET {each}" for each in self._planning)]))
        return self._raw

    async def _drop(self) -> None:
        connection, self._connection, self._raw = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                async with asyncio.timeout(2.0):
                    await connection.invalidate()
                    await connection.close()
