"""Every statement of the inbox."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Integer, delete, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from relmsg.inbox.identity import Identity
from relmsg.schema import DEFAULT_SCHEMA, tables


class Store:
    """The two tables of the inbox. No method opens or ends a transaction."""

    def __init__(self, schema: str = DEFAULT_SCHEMA) -> None:
        self._message = tables(schema).inbox_message
        self._attempt = tables(schema).inbox_attempt
        row = ("consumer", "source", "message_id")
        self._once = insert(self._message).on_conflict_do_nothing().returning(literal_column("1", Integer))
        self._start = insert(self._attempt).on_conflict_do_update(
            index_elements=row, set_={"starts": self._attempt.c.starts + 1}
        )

    async def once(self, session: AsyncSession, identity: Identity) -> bool:
        """Remember the message; False if it had been remembered before.

        Right under concurrency: a second INSERT of the key waits for the first transaction. If that one commits, no row
        comes back; if it rolls back, this one goes on. Only a committed effect ever makes a duplicate.
        """
        connection = await session.connection()
        return (await connection.execute(self._once, identity._asdict())).first() is not None

    async def starts(self, session: AsyncSession, identity: Identity) -> int:
        """How many starts of the message are recorded and not taken back."""
        connection = await session.connection()
        found = await connection.scalar(select(self._attempt.c.starts).where(*self._is(identity)))
        return int(found or 0)

    async def start(self, session: AsyncSession, identity: Identity) -> None:
        """Record one more start of a message.

        It need not survive a crash of the *server*: it counts crashes of workers. So nobody waits for the disk.
        """
        connection = await session.connection()
        await connection.execute(text("SET LOCAL synchronous_commit = off"))
        await connection.execute(self._start, identity._asdict())

    async def take_back_start(self, session: AsyncSession, identity: Identity) -> None:
        """The worker has survived a start: it does not count."""
        row, starts = self._is(identity), self._attempt.c.starts
        connection = await session.connection()
        await connection.execute(text("SET LOCAL synchronous_commit = off"))
        await connection.execute(delete(self._attempt).where(*row, starts <= 1))
        await connection.execute(update(self._attempt).where(*row).values(starts=starts - 1))

    async def forget_starts(self, session: AsyncSession, identity: Identity) -> None:
        """The message has come to an end: its starts count no longer."""
        connection = await session.connection()
        await connection.execute(delete(self._attempt).where(*self._is(identity)))

    def _is(self, identity: Identity) -> tuple[ColumnElement[bool], ...]:
        columns = self._attempt.c
        return (
            columns.consumer == identity.consumer,
            columns.source == identity.source,
            columns.message_id == identity.message_id,
        )
