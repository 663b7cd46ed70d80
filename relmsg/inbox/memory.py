"""Operator queries and actions on what inboxes remember."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from relmsg.errors import RelmsgError, SchemaError
from relmsg.inbox.pruning import DEFAULT_WINDOW, Pruned, Pruning, Window, forget_all


class Memory:
    """What the inboxes in one database remember. Every method opens transactions of its own."""

    def __init__(self, engine: AsyncEngine, schema: str) -> None:
        self._engine = engine
        self._pruning = Pruning(schema)

    async def windows(self) -> dict[str, Window]:
        """Every stored dedup window, by the consumer's name.

        A message that was published before a window's ``forgets_before`` may have been handled and forgotten: sent
        again, it takes effect once more.
        """
        async with self._connection() as connection:
            return await self._pruning.windows(connection)

    async def status(self) -> list[dict[str, Any]]:
        """For each consumer how many messages it remembers (above 100,000 an estimate), since when, for how long, and
        what it has forgotten.
        """
        rows = []
        async with self._connection() as connection:
            indexed = await self._pruning.is_indexed(connection)
            windows = await self._pruning.windows(connection)
            for consumer in await self._pruning.consumers(connection):
                count, exact = await self._pruning.count(connection, consumer)
                # Without the index this would read all of the table.
                oldest, newest = await self._pruning.ages(connection, consumer) if indexed else (None, None)
                window = windows.get(consumer, Window(DEFAULT_WINDOW, None, None, None))
                rows.append(
                    {
                        "consumer": consumer,
                        "messages": count,
                        "exact": exact,
                        "oldest": oldest,
                        "newest": newest,
                        "keeps_seconds": None if window.keeps is None else window.keeps.total_seconds(),
                        "pruned_before": window.pruned_before,
                        "pruned_at": window.pruned_at,
                    }
                )
        return rows

    async def due(self, consumer: str | None, older_than: timedelta | None) -> dict[str, tuple[int, datetime]]:
        """How many messages each consumer would forget, and up to which moment: those older than its dedup window, or
        than the age given. A consumer that remembers for ever forgets only by an age.

        :raises RelmsgError: there is no such consumer.
        :raises SchemaError: the index is missing by which they are found.
        """
        found = {}
        async with self._connection() as connection:
            if not await self._pruning.is_indexed(connection):
                raise SchemaError(
                    "the index inbox_message_handled_at is missing or incomplete: run `relmsg db upgrade`"
                )
            windows = await self._pruning.windows(connection)
            known = await self._pruning.consumers(connection)
            if consumer is not None and consumer not in known:
                raise RelmsgError(f"no consumer {consumer!r} remembers anything: see `relmsg inbox status`")
            for each in known if consumer is None else [consumer]:
                window = windows.get(each, Window(DEFAULT_WINDOW, None, None, None))
                if (age := older_than or window.keeps) is not None:
                    before = await self._pruning.before(connection, age)
                    found[each] = (await self._pruning.due(connection, each, before), before)
        return found

    async def prune(self, consumer: str, before: datetime, progress: Callable[[int], None]) -> int:
        """Forget what the consumer handled before a moment, in small transactions; how many messages.

        :raises RelmsgError: another process prunes this consumer's messages now; or a trigger or constraint refuses to
            let some of them go, and the others are forgotten.
        """
        refused, first = 0, None

        async def forget(since: datetime | None) -> Pruned | None:
            nonlocal refused, first
            async with self._connection() as connection, connection.begin():
                pruned = await self._pruning.forget(connection, consumer, before, since)
            if pruned is not None and pruned.error is not None:
                refused, first = refused + pruned.refused, first or pruned.error
            return pruned

        async def pause(rows: int) -> None:
            progress(rows)

        rows = await forget_all(forget, pause)
        if rows is None:
            raise RelmsgError(f"another process prunes what {consumer!r} remembers at this moment: try again")
        progress(rows)
        if first is not None:
            raise RelmsgError(f"{refused} messages of {consumer!r} cannot be forgotten, the others are: {first}")
        return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield await connection.execution_options(isolation_level="READ COMMITTED")
