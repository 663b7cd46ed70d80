"""The fence: a row that makes the answer to a check final, even against a local transaction that is still open.

A checker that looks for the work and does not find it has proved nothing: the transaction may be open, and commit a
moment later. So both write: the local transaction inserts COMMIT under the id of its half message, the checker inserts
ROLLBACK under the same id, and the primary key lets one of the two in. Whoever meets an open transaction there waits
for it; a checker that would wait for long says UNKNOWN, and the next check asks again.

The row must be in the very database, and the very transaction, that holds the work. That can be any database SQLAlchemy
has an async driver for and whose primary keys are held against open transactions; PostgreSQL, MariaDB and SQLite are
tested.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    Engine,
    MetaData,
    StaticPool,
    String,
    Table,
    delete,
    func,
    insert,
    inspect,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import sessionmaker

from relmsg import arguments
from relmsg.arguments import shown
from relmsg.db.failures import brief
from relmsg.db.search_path import equals
from relmsg.errors import HalfRolledBack, TransactionRequired, UsageError
from relmsg.half.lock_wait import waiting_at_most
from relmsg.half.state import Resolution
from relmsg.runtime.bounded_log import BoundedLog
from relmsg.runtime.isolated import is_stop

LOCK_SECONDS = 1.0
MOST_LOCK_SECONDS = 3600.0
MOST_AGE_SECONDS = 100 * 365 * 24 * 3600.0
MOST_NAME_BYTES = 63  # PostgreSQL cuts longer names
PRUNED_AT_ONCE = 1000


class Identified(Protocol):
    """What a checker is asked about."""

    @property
    def id(self) -> UUID | str: ...


def fence_table(metadata: MetaData | None = None, name: str = "relmsg_fence", schema: str | None = None) -> Table:
    """The table of the fence, for your own metadata, so that your migrations make it; ``create_fence`` makes it too.

    :raises UsageError: there can be no such table.
    """
    if metadata is not None:
        arguments.instance("fence_table(metadata)", metadata, MetaData)
    arguments.text("fence_table(name=…)", name, most=MOST_NAME_BYTES)
    if schema is not None:
        arguments.text("fence_table(schema=…)", schema, most=MOST_NAME_BYTES)
    return Table(
        name,
        MetaData() if metadata is None else metadata,
        Column("half_id", String(36), primary_key=True),
        Column("resolution", String(8), nullable=False),
        Column("decided_at", DateTime(timezone=True), server_default=func.current_timestamp(), nullable=False),
        schema=schema,
        # Whatever the server's default is: MyISAM would keep the row of a transaction that was rolled back.
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )


DEFAULT_TABLE = fence_table()


async def create_fence(engine: AsyncEngine, table: Table = DEFAULT_TABLE) -> None:
    """Make the table where it is missing. All instances of a service may call this at once, at every start."""
    arguments.instance("create_fence(engine)", engine, AsyncEngine)
    arguments.instance("create_fence(engine, table)", table, Table, "made by fence_table()")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(table.create, checkfirst=True)
    except DBAPIError:  # another instance was quicker
        async with engine.connect() as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table(table.name, schema=table.schema)):
                raise


@dataclass(frozen=True, slots=True)
class Fence:
    """Which table the fence is in, and how many seconds a checker waits for an open transaction there.

    MariaDB and MySQL wait for whole seconds, 1 at least.
    """

    table: Table = DEFAULT_TABLE
    lock_seconds: float = LOCK_SECONDS
    _lines: BoundedLog = field(
        default_factory=lambda: BoundedLog(logging.getLogger(__name__)), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        arguments.instance("Fence(table)", self.table, Table, "made by fence_table()")
        if missing := {"half_id", "resolution", "decided_at"} - set(self.table.columns.keys()):
            raise UsageError(f"Fence(table) is made by fence_table(); this one has no {', '.join(sorted(missing))}")
        seconds = arguments.seconds("Fence(lock_seconds=…)", self.lock_seconds, positive=True, most=MOST_LOCK_SECONDS)
        object.__setattr__(self, "lock_seconds", seconds)

    async def commit(self, tx: AsyncSession | AsyncConnection, half_id: UUID | str) -> bool:
        """Put COMMIT down in the caller's transaction, which commits or rolls back together with the work.

        Call it before the work, and not in a savepoint: a checker that comes then waits, where otherwise it would
        decide against you. True: this transaction holds the fence now. False: COMMIT stood there before, from this
        transaction or from one that has committed, and then the work is done already: do not do it twice.

        :raises HalfRolledBack: a checker was first; roll the transaction back, it must not commit. Under REPEATABLE
            READ or stricter the database's own serialization error may come instead; such a one cannot commit either.
        :raises TransactionRequired: the connection commits by itself (AUTOCOMMIT).
        """
        key = _key(half_id)
        if isinstance(tx, AsyncSession):
            tx = await tx.connection(bind_arguments={"clause": self.table})
        elif not isinstance(tx, AsyncConnection):
            raise UsageError(f"the fence takes an AsyncSession or an AsyncConnection, not a {type(tx).__name__}")
        _hold_together(tx)
        if await self._insert(tx, key, Resolution.COMMIT):
            return True
        if await self._read(tx, key) is Resolution.COMMIT:
            return False
        raise HalfRolledBack(
            f"half message {key} was rolled back by a check that came before this transaction: roll it back too"
        )

    async def resolve(self, sessions: Callable[[], AsyncSession] | AsyncEngine, half_id: UUID | str) -> Resolution:
        """What became of the local transaction, and final from now on, unless UNKNOWN.

        On a connection of its own. COMMIT: it has committed. ROLLBACK: it has not, and never can. UNKNOWN: it is still
        open, or the database gave no answer; nothing is decided, ask again.

        :raises UsageError: the sessions share one connection (an in-memory SQLite, a session bound to a connection), on
            which an open transaction would pass for a committed one; or it commits by itself (AUTOCOMMIT).
        """
        key = _key(half_id)
        _require_sessions("resolve(sessions)", sessions)
        engine = sessions if isinstance(sessions, AsyncEngine) else await self._engine(sessions)
        if isinstance(engine.sync_engine.pool, StaticPool):
            raise UsageError("a fenced checker needs a connection of its own: this engine has only one for all")
        try:
            async with engine.connect() as connection:
                _hold_together(connection)
                async with waiting_at_most(connection, self.lock_seconds):
                    inserted = await self._insert(connection, key, Resolution.ROLLBACK)
                    await _commit(connection)
                    found = Resolution.ROLLBACK if inserted else await self._read(connection, key)
        except UsageError:
            raise
        except BaseException as error:  # while it connects, a driver raises what it likes
            if is_stop(error):
                raise
            self._lines.warning(
                "half message %s: its local transaction is open, or cannot be asked for: %s", key, brief(error)
            )
            return Resolution.UNKNOWN
        return found or Resolution.UNKNOWN

    def checker(
        self, sessions: Callable[[], AsyncSession] | AsyncEngine
    ) -> Callable[[Identified], Awaitable[Resolution]]:
        """``resolve`` as a checker. Every local transaction of the types it is registered for must have the fence: the
        answer about one without it is ROLLBACK.

        :raises UsageError: these are no sessions.
        """
        _require_sessions("checker(sessions)", sessions)

        async def fenced(half: Identified) -> Resolution:
            return await self.resolve(sessions, half.id)

        return fenced

    async def prune(self, engine: AsyncEngine, older_than: timedelta) -> int:
        """Remove what is older than that by the database's clock; how many rows these were.

        A row must outlive its half message: once it is gone, a checker would say ROLLBACK of committed work. Choose far
        more than any half message can stay open, PARKED ones included.

        :raises UsageError: ``older_than`` is negative, or no time.
        """
        arguments.instance("prune(engine)", engine, AsyncEngine)
        seconds = arguments.seconds("prune(older_than=…)", older_than, most=MOST_AGE_SECONDS)
        fence, pruned = self.table.c, 0
        async with engine.connect() as connection:
            before = (await connection.execute(select(func.current_timestamp()))).scalar_one() - timedelta(
                seconds=seconds
            )
            # By their keys: MariaDB would otherwise lock each row it looks at, and hold up those who insert.
            some = select(fence.half_id).where(fence.decided_at < before).limit(PRUNED_AT_ONCE)
            while keys := (await connection.scalars(some)).all():
                await connection.execute(delete(self.table).where(_is_any(connection, fence, keys)))
                await connection.commit()
                pruned += len(keys)
        return pruned

    async def _engine(self, sessions: Callable[[], AsyncSession]) -> AsyncEngine:
        async with sessions() as session:
            bind = session.get_bind(clause=self.table)
        if not isinstance(bind, Engine):
            raise UsageError("a fenced checker needs a connection of its own: bind the sessions to an engine")
        return AsyncEngine(bind)

    async def _insert(self, connection: AsyncConnection, key: str, resolution: Resolution) -> bool:
        """Whether the row is in; False: there was one. The transaction can go on in both cases."""
        values = {"half_id": key, "resolution": resolution.value}
        if connection.dialect.name == "postgresql":  # where a duplicate key would be the end of the transaction
            statement = postgresql.insert(self.table).values(values).on_conflict_do_nothing()
            return (await connection.execute(statement)).rowcount == 1
        try:
            await connection.execute(insert(self.table).values(values))
        except IntegrityError:
            return False
        return True

    async def _read(self, connection: AsyncConnection, key: str) -> Resolution | None:
        query = select(self.table.c.resolution).where(_is(connection, self.table.c, key))
        if connection.dialect.name in ("mariadb", "mysql"):  # a plain read there shows what was when the tx began
            query = query.with_for_update(read=True)
        found = await connection.scalar(query)
        return None if found is None else Resolution(found)


def _require_sessions(name: str, sessions: object) -> None:
    """:raises UsageError: no AsyncSession can come of these."""
    if isinstance(sessions, AsyncEngine):
        return
    # The sync sessionmaker is callable too, and so is every class.
    if not callable(sessions) or isinstance(sessions, type | sessionmaker):
        raise arguments.refused(name, sessions, "is an async_sessionmaker or an AsyncEngine")


def _key(half_id: UUID | str) -> str:
    """One spelling of the id: two would be two rows, and both sides would win."""
    try:
        return str(half_id if isinstance(half_id, UUID) else UUID(half_id))
    except (ValueError, AttributeError, TypeError):
        raise UsageError(f"half id {shown(half_id)}: it is a UUID, the id of the half message") from None


def _is(connection: AsyncConnection, fence: Any, key: str) -> ColumnElement[bool]:
    """Whether a row is that of the key, by no operator but the database's own."""
    column = fence.half_id
    return equals(column, key) if connection.dialect.name == "postgresql" else column == key


def _is_any(connection: AsyncConnection, fence: Any, keys: Sequence[str]) -> ColumnElement[bool]:
    column = fence.half_id
    if connection.dialect.name == "postgresql":
        return equals(column, func.any(literal(keys, postgresql.ARRAY(String))))
    return column.in_(keys)  # type: ignore[no-any-return]


def _hold_together(connection: AsyncConnection) -> None:
    """:raises TransactionRequired: every statement would commit by itself."""
    sync = connection.sync_connection
    assert sync is not None
    # As SQLAlchemy tells it: a driver's own flag may say AUTOCOMMIT where SQLAlchemy's listeners send BEGIN (SQLite).
    level = sync.get_execution_options().get("isolation_level")
    if (level or getattr(sync.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT":
        raise TransactionRequired("this connection is in AUTOCOMMIT: the fence would stand without your work")


async def _commit(connection: AsyncConnection) -> None:
    """Commit, or give the connection up: SQLAlchemy takes a transaction whose commit has failed for ended and puts it
    back into the pool as it is, and in SQLite (locked by a reader) it is still open then."""
    try:
        await connection.commit()
    except BaseException:
        await connection.invalidate()
        raise
