"""Every statement of the inbox."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, Connection, Dialect, Text, bindparam, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from relmsg.db.search_path import equals
from relmsg.errors import RowNotStored
from relmsg.inbox.identity import Identity
from relmsg.schema import DEFAULT_SCHEMA, quoted, tables

# All names by their schema: these run in the user's session, under the user's search_path (docs/decisions/0120).
#
# Our INSERT waits for another transaction's row 200 ms at most, the handler's statements as long as they would without
# us. Where the server has no limit of its own, a transaction whose process has vanished is ended after `idle`
# milliseconds, and its rows are free. Set and restored in the statement itself, which costs no way to the server.
LIMITS = """
WITH before AS MATERIALIZED (
    SELECT pg_catalog.current_setting('lock_timeout') AS wait,
        pg_catalog.current_setting('idle_in_transaction_session_timeout') AS idle
), limits AS MATERIALIZED (
    SELECT pg_catalog.set_config('lock_timeout', '200ms', true),
        pg_catalog.set_config('idle_in_transaction_session_timeout',
            CASE WHEN idle OPERATOR(pg_catalog.=) '0' THEN :idle ELSE idle END, true)
    FROM before
)"""
RESTORED = "pg_catalog.set_config('lock_timeout', (SELECT wait FROM before), true)"
ONCE = """{limits}
INSERT INTO {inbox} (consumer, source, message_id) SELECT :consumer, :source, :message_id FROM limits
ON CONFLICT DO NOTHING RETURNING {restored}
"""
# What is new is named only where something is not: in the usual case one number comes back.
ONCE_EACH = """{limits}, new AS (
    INSERT INTO {inbox} (consumer, source, message_id)
    SELECT :consumer, t.source, t.message_id
    FROM limits, ROWS FROM (pg_catalog.unnest(:sources), pg_catalog.unnest(:message_ids)) AS t (source, message_id)
    ON CONFLICT DO NOTHING RETURNING source, message_id
)
SELECT pg_catalog.count(*) AS count,
    CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.<) pg_catalog.cardinality(:message_ids)
        THEN pg_catalog.array_agg(source) END AS sources,
    CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.<) pg_catalog.cardinality(:message_ids)
        THEN pg_catalog.array_agg(message_id) END AS message_ids,
    CAST(CAST(pg_catalog.pg_current_xact_id() AS pg_catalog.xid) AS pg_catalog.text) AS written_by,
    {restored} AS wait
FROM new
"""
SHORT_WAIT = text("SET LOCAL lock_timeout = '200ms'")
FORGET_EACH = """
DELETE FROM {inbox} AS i
USING ROWS FROM (pg_catalog.unnest(:sources), pg_catalog.unnest(:message_ids)) AS t (source, message_id)
WHERE i.consumer OPERATOR(pg_catalog.=) :consumer AND i.source OPERATOR(pg_catalog.=) t.source
    AND i.message_id OPERATOR(pg_catalog.=) t.message_id
    AND i.xmin OPERATOR(pg_catalog.=) CAST(:written_by AS pg_catalog.xid)
"""

NOT_REMEMBERED = """
SELECT t.message_id
FROM ROWS FROM (pg_catalog.unnest(:sources), pg_catalog.unnest(:message_ids)) AS t (source, message_id)
WHERE NOT EXISTS (
    SELECT FROM {inbox} AS i
    WHERE i.consumer OPERATOR(pg_catalog.=) :consumer AND i.source OPERATOR(pg_catalog.=) t.source
        AND i.message_id OPERATOR(pg_catalog.=) t.message_id
)
LIMIT 1
"""

# Two steps in the primary key, however many messages are remembered.
OTHER_SOURCE = """
(SELECT source FROM {inbox} WHERE consumer OPERATOR(pg_catalog.=) :consumer AND source OPERATOR(pg_catalog.>) :source
 ORDER BY consumer, source LIMIT 1)
UNION ALL
(SELECT source FROM {inbox} WHERE consumer OPERATOR(pg_catalog.=) :consumer AND source OPERATOR(pg_catalog.<) :source
 ORDER BY consumer DESC, source DESC LIMIT 1)
"""


class New(NamedTuple):
    """Which messages of a group had not been remembered before, and the transaction in which they are now."""

    identities: set[Identity]
    written_by: str


class Store:
    """The two tables of the inbox. No method opens or ends a transaction.

    Those that every message needs take a synchronous connection, for use inside ``AsyncSession.run_sync``: the way from
    one to the other world and back costs more than the statement.
    """

    def __init__(self, schema: str = DEFAULT_SCHEMA) -> None:
        self._attempt = tables(schema).inbox_attempt
        row = ("consumer", "source", "message_id")
        self._start = insert(self._attempt).on_conflict_do_update(
            index_elements=row, set_={"starts": self._attempt.c.starts + 1}
        )
        inbox = quoted(schema, "inbox_message").replace(":", "\\:")
        self._once = _Prepared(ONCE.format(inbox=inbox, limits=LIMITS, restored=RESTORED))
        self._once_each = _Prepared(ONCE_EACH.format(inbox=inbox, limits=LIMITS, restored=RESTORED))
        self._forget_each = _Prepared(FORGET_EACH.format(inbox=inbox))
        self._not_remembered = _Prepared(NOT_REMEMBERED.format(inbox=inbox))
        self._other_source = _Prepared(OTHER_SOURCE.format(inbox=inbox))
        self.taken_at = float("-inf")
        """When the last attempt began whose INSERT the database took; set by those who make attempts."""

    def once(self, connection: Connection, identity: Identity, idle: str = "0") -> bool:
        """Remember the message; False if it had been remembered before.

        Right under concurrency: a second INSERT of the key waits for the first transaction. If that one commits, no row
        comes back; if it rolls back, this one goes on; if it does neither for 200 ms, this one fails (55P03), to be
        tried later. Only a committed effect ever makes a duplicate. ``idle``: milliseconds after which the server may
        end this transaction if nothing is heard of it.

        :raises RowNotStored: a trigger of the user's let the row vanish, and the message is not remembered.
        """
        if self._once(connection, identity._asdict() | {"idle": idle}).first() is not None:
            return True
        self._require_remembered(connection, [identity])
        return False

    def once_each(self, connection: Connection, identities: Collection[Identity], idle: str = "0") -> New:
        """Remember many messages of one consumer, in one statement; tells which of them had not been.

        Right under concurrency as ``once`` is. Rows are written in the order of their keys: two processes that have the
        same messages in another order wait for each other, and never in a circle.

        :raises RowNotStored: as ``once``.
        """
        distinct = set(identities)
        wanted = _in_order(distinct)
        found = self._once_each(connection, _columns(wanted) | {"idle": idle}).one()
        if found.count == len(wanted):
            return New(distinct, found.written_by)
        consumer = wanted[0].consumer
        came = zip(found.sources or (), found.message_ids or (), strict=True)
        new = {Identity(consumer, source, message_id) for source, message_id in came}
        self._require_remembered(connection, _in_order(distinct - new))
        return New(new, found.written_by)

    def forget_each(self, connection: Connection, identities: Collection[Identity], written_by: str) -> None:
        """Take back what ``once_each`` remembered in the transaction ``written_by``, and nothing else."""
        self._forget_each(connection, _columns(_in_order(identities)) | {"written_by": written_by})

    def other_source(self, connection: Connection, identity: Identity) -> str | None:
        """Another source of which the consumer remembers a message; None: there is none."""
        row = self._other_source(connection, {"consumer": identity.consumer, "source": identity.source}).first()
        return None if row is None else str(row[0])

    def _require_remembered(self, connection: Connection, identities: list[Identity]) -> None:
        """What was not new has to be there. A later statement sees what others have committed meanwhile."""
        vanished = self._not_remembered(connection, _columns(identities)).first()
        if vanished is not None:
            raise RowNotStored(
                f"PostgreSQL took the inbox row of message {vanished.message_id} without an error and has not stored "
                "it: look for a trigger on inbox_message that returns NULL"
            )

    async def starts(self, session: AsyncSession, identity: Identity) -> int:
        """How many starts of the message are recorded and not taken back."""
        connection = await session.connection()
        await connection.execute(SHORT_WAIT)
        found = await connection.scalar(select(self._attempt.c.starts).where(*self._is(identity)))
        return int(found or 0)

    async def start(self, session: AsyncSession, identity: Identity) -> None:
        """Record one more start of a message.

        It need not survive a crash of the *server*: it counts crashes of workers. So nobody waits for the disk.
        """
        connection = await session.connection()
        await connection.execute(SHORT_WAIT)
        await connection.execute(text("SET LOCAL synchronous_commit = off"))
        await connection.execute(self._start, identity._asdict())

    async def take_back_start(self, session: AsyncSession, identity: Identity) -> None:
        """The worker has survived a start: it does not count."""
        row, starts = self._is(identity), self._attempt.c.starts
        connection = await session.connection()
        await connection.execute(SHORT_WAIT)
        await connection.execute(text("SET LOCAL synchronous_commit = off"))
        await connection.execute(delete(self._attempt).where(*row, starts <= 1))
        await connection.execute(update(self._attempt).where(*row).values(starts=starts - 1))

    async def forget_starts(self, session: AsyncSession, identity: Identity) -> None:
        """The message has come to an end: its starts count no longer. The user's ``lock_timeout`` holds again after."""
        connection = await session.connection()
        before = await connection.scalar(text("SELECT pg_catalog.current_setting('lock_timeout')"))
        await connection.execute(SHORT_WAIT)
        await connection.execute(delete(self._attempt).where(*self._is(identity)))
        await connection.execute(text("SELECT pg_catalog.set_config('lock_timeout', :wait, true)"), {"wait": before})

    def _is(self, identity: Identity) -> tuple[ColumnElement[bool], ...]:
        columns = self._attempt.c
        return (
            equals(columns.consumer, identity.consumer),
            equals(columns.source, identity.source),
            equals(columns.message_id, identity.message_id),
        )


class _Prepared:
    """A statement that is compiled once for a driver, and then sent as it is: compiling it anew, even from SQLAlchemy's
    cache, takes longer than PostgreSQL needs for it."""

    def __init__(self, sql: str) -> None:
        statement = text(sql)
        types = {name: ARRAY(Text) if name.endswith("s") else Text() for name in statement.compile().params}
        self._statement = statement.bindparams(*(bindparam(name, type_=kind) for name, kind in types.items()))
        self._compiled: dict[str, tuple[str, list[str] | None]] = {}

    def __call__(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        sql, order = self._for(connection.dialect)
        given = tuple(values[name] for name in order) if order is not None else values
        return connection.exec_driver_sql(sql, given)

    def _for(self, dialect: Dialect) -> tuple[str, list[str] | None]:
        compiled = self._compiled.get(dialect.driver)
        if compiled is None:
            made = self._statement.compile(dialect=dialect)
            compiled = self._compiled[dialect.driver] = (str(made), made.positiontup)
        return compiled


def _in_order(identities: Iterable[Identity]) -> list[Identity]:
    """Identities of one consumer in the order of their keys. Two sorts of strings take less than one of tuples."""
    ordered = sorted(identities, key=attrgetter("message_id"))
    ordered.sort(key=attrgetter("source"))
    return ordered


def _columns(identities: list[Identity]) -> dict[str, Any]:
    return {
        "consumer": identities[0].consumer,
        "sources": [identity.source for identity in identities],
        "message_ids": [identity.message_id for identity in identities],
    }
