"""The fence decides between a local transaction and a checker, on each kind of database: one of them wins, for good."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, MetaData, StaticPool, event, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from compose.services.ports import free_ports
from relmsg.errors import HalfRolledBack, TransactionRequired, UsageError
from relmsg.half.fence import DEFAULT_TABLE, Fence, create_fence, fence_table
from relmsg.half.lock_wait import waiting_at_most
from relmsg.half.state import Resolution
from relmsg.testing import eventually
from tests.support.stores import KINDS, Stores

COMMIT, ROLLBACK, UNKNOWN = Resolution.COMMIT, Resolution.ROLLBACK, Resolution.UNKNOWN
FENCE = Fence(lock_seconds=0.1)
LOCK_SETTINGS = {
    "postgresql": "SHOW lock_timeout",
    "mariadb": "SELECT concat(@@SESSION.innodb_lock_wait_timeout, ' ', @@SESSION.lock_wait_timeout)",
    "sqlite": "PRAGMA busy_timeout",
}


@dataclass(frozen=True, slots=True)
class Shop:
    """A service's own database: its work is a row in ``work``, and beside it stands the fence."""

    kind: str
    engine: AsyncEngine

    @property
    def sessions(self) -> async_sessionmaker[AsyncSession]:
        return async_sessionmaker(self.engine)

    async def work(self, session: AsyncSession | AsyncConnection, half_id: uuid.UUID) -> None:
        await session.execute(text("INSERT INTO work (id) VALUES (:id)"), {"id": str(half_id)})

    async def worked(self, half_id: uuid.UUID) -> bool:
        async with self.engine.connect() as connection:
            count = await connection.scalar(text("SELECT count(*) FROM work WHERE id = :id"), {"id": str(half_id)})
        return count == 1

    async def stands(self, half_id: uuid.UUID) -> str | None:
        """What the fence says, read as anyone could."""
        fence = DEFAULT_TABLE.c
        async with self.engine.connect() as connection:
            return await connection.scalar(select(fence.resolution).where(fence.half_id == str(half_id)))

    def sent_insert(self) -> asyncio.Event:
        """Set once an INSERT is on its way through this engine."""
        sent = asyncio.Event()

        def note(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("INSERT"):
                sent.set()

        event.listen(self.engine.sync_engine, "before_cursor_execute", note)
        return sent

    async def setting(self) -> str:
        """How long the connection that the pool hands out next waits for locks."""
        async with self.engine.connect() as connection:
            return str(await connection.scalar(text(LOCK_SETTINGS[self.kind])))


@asynccontextmanager
async def shop_at(url: str, **options: Any) -> AsyncIterator[Shop]:
    if "pool_size" in options:  # SQLAlchemy before 2.0.38 keeps no connections to SQLite unless it is told to
        options["poolclass"] = AsyncAdaptedQueuePool
    engine = create_async_engine(url, **options)
    yield Shop(make_url(url).get_backend_name(), engine)
    await engine.dispose()


@pytest.fixture(autouse=True)
async def ended() -> AsyncIterator[None]:
    """A connection to SQLite that was given up is closed by its thread, which must not outlive the loop it answers."""
    yield

    def no_thread_is_left() -> None:
        assert [each.name for each in threading.enumerate() if "_connection_worker_thread" in each.name] == []

    await eventually(no_thread_is_left)


@pytest.fixture(scope="module", params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(request, request.param, tmp_path_factory.mktemp("fence"))


@pytest.fixture(scope="module")
def url(stores: Stores) -> Iterator[str]:
    """A database with the fence, for all tests of its kind: each has a half id of its own."""

    async def create() -> str:
        async with shop_at(url := await stores.create()) as shop:
            await create_fence(shop.engine)
            async with shop.engine.begin() as connection:
                await connection.execute(text("CREATE TABLE work (id varchar(36))"))
        return url

    url = asyncio.run(create())
    yield url
    asyncio.run(stores.drop(url))


@pytest.fixture
async def shop(url: str) -> AsyncIterator[Shop]:
    async with shop_at(url, pool_size=20) as shop:
        yield shop


@pytest.fixture
async def bare(stores: Stores) -> AsyncIterator[Shop]:
    """A shop of one test's own, without the fence."""
    url = await stores.create()
    async with shop_at(url, pool_size=8) as shop:
        yield shop
    await stores.drop(url)


@pytest.fixture
def half_id() -> uuid.UUID:
    return uuid.uuid4()


@pytest.mark.parametrize("commits", [True, False])
async def test_while_the_transaction_is_open_nobody_can_tell(shop: Shop, half_id: uuid.UUID, commits: bool) -> None:
    """Held open across three checks, it gets three times UNKNOWN; then what it came to, at each check from then on."""
    async with shop.sessions() as session:
        assert await FENCE.commit(session, half_id)
        await shop.work(session, half_id)
        assert [await FENCE.resolve(shop.sessions, half_id) for _ in range(3)] == [UNKNOWN] * 3
        await (session.commit() if commits else session.rollback())
    verdict = COMMIT if commits else ROLLBACK
    assert [await FENCE.resolve(shop.sessions, half_id) for _ in range(2)] == [verdict] * 2
    assert await shop.worked(half_id) is commits


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_transaction_that_comes_after_the_checker_can_only_roll_back(
    shop: Shop, half_id: uuid.UUID, isolated: bool
) -> None:
    """Open across three checks but late with its fence, it learns that it was rolled back, whatever its snapshot."""
    level = {"isolation_level": "REPEATABLE READ"} if isolated and shop.kind != "sqlite" else {}
    refusal: Any = DBAPIError if isolated and shop.kind == "postgresql" else HalfRolledBack
    async with shop.sessions() as session:
        connection = await session.connection(execution_options=level)
        await connection.execute(text("SELECT count(*) FROM work"))
        assert [await FENCE.resolve(shop.sessions, half_id) for _ in range(3)] == [ROLLBACK] * 3
        with pytest.raises(refusal):
            await FENCE.commit(session, half_id)
    assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK
    async with shop.sessions() as session, session.begin():
        with pytest.raises(HalfRolledBack, match=str(half_id)):
            await FENCE.commit(session, half_id)


async def test_the_transaction_waits_for_a_checker_that_is_just_deciding(
    shop: Shop, half_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checker stopped between its insert and its commit: the transaction does not pass it by."""
    inserted, go_on = asyncio.Event(), asyncio.Event()
    commit = AsyncConnection.commit

    async def slowly(connection: AsyncConnection) -> None:
        inserted.set()
        await go_on.wait()
        await commit(connection)

    monkeypatch.setattr(AsyncConnection, "commit", slowly)
    checking = asyncio.create_task(FENCE.resolve(shop.sessions, half_id))
    await inserted.wait()
    sent = shop.sent_insert()

    async def work() -> None:
        async with shop.sessions() as session, session.begin():
            await FENCE.commit(session, half_id)
            await shop.work(session, half_id)

    working = asyncio.create_task(work())
    await sent.wait()
    assert not working.done()
    go_on.set()
    assert await checking is ROLLBACK
    with pytest.raises(HalfRolledBack):
        await working
    assert not await shop.worked(half_id)


async def test_in_any_order_and_all_at_once_both_sides_end_the_same_way(shop: Shop) -> None:
    """Twenty-four transactions against two checkers each: no verdict is ever taken back, and work is there where it is
    COMMIT, and only there."""
    halves = [uuid.uuid4() for _ in range(24)]
    verdicts: dict[uuid.UUID, set[Resolution]] = {each: set() for each in halves}

    async def work(half_id: uuid.UUID, after: asyncio.Task[None] | None) -> None:
        if after:
            await after
        try:
            async with shop.sessions() as session, session.begin():
                if await FENCE.commit(session, half_id):
                    await shop.work(session, half_id)
        except (HalfRolledBack, OperationalError):  # SQLite has one writer at a time: others may find it locked
            return

    async def check(half_id: uuid.UUID) -> None:
        verdicts[half_id].add(await FENCE.resolve(shop.sessions, half_id))

    room = asyncio.Semaphore(6)

    async def race(number: int, half_id: uuid.UUID) -> None:
        async with room, asyncio.TaskGroup() as group:
            first = group.create_task(check(half_id)) if number % 4 != 1 else None
            working = group.create_task(work(half_id, first if number % 4 == 0 else None))
            if number % 4 == 1:
                await asyncio.wait({working})
            group.create_task(check(half_id))

    async with asyncio.TaskGroup() as group:
        for number, half_id in enumerate(halves):
            group.create_task(race(number, half_id))
    final = {each: await FENCE.resolve(shop.sessions, each) for each in halves}
    assert set(final.values()) == {COMMIT, ROLLBACK}
    for half_id in halves:
        assert verdicts[half_id] <= {final[half_id], UNKNOWN}
        assert await shop.worked(half_id) is (final[half_id] is COMMIT)


async def test_the_fence_can_be_put_up_twice_in_one_transaction(shop: Shop, half_id: uuid.UUID) -> None:
    """The second time changes nothing, and the transaction goes on."""
    async with shop.engine.begin() as connection:
        assert await FENCE.commit(connection, half_id)
        assert not await FENCE.commit(connection, half_id)
        await shop.work(connection, half_id)
    assert await shop.worked(half_id)
    assert await shop.stands(half_id) == "COMMIT"


async def test_a_transaction_begun_again_after_it_has_committed_is_told_so(shop: Shop, half_id: uuid.UUID) -> None:
    """A commit whose answer was lost is tried again: False says that the work is done, and nothing is refused."""
    for first in (True, False):
        async with shop.sessions() as session, session.begin():
            assert await FENCE.commit(session, half_id) is first
    assert await FENCE.resolve(shop.sessions, half_id) is COMMIT


async def test_a_snapshot_older_than_that_commit_hides_nothing(shop: Shop, half_id: uuid.UUID) -> None:
    """In the usual isolation of its database the transaction sees who was first: not a checker, but its own twin."""
    async with shop.sessions() as session, session.begin():
        await session.execute(text("SELECT count(*) FROM work"))
        async with shop.sessions() as twin, twin.begin():
            assert await FENCE.commit(twin, half_id)
        assert not await FENCE.commit(session, half_id)


async def test_a_session_that_has_begun_nothing_is_begun_by_the_fence(shop: Shop, half_id: uuid.UUID) -> None:
    """And without a commit of its caller's the fence is not there."""
    async with shop.sessions() as session:
        await FENCE.commit(session, half_id)
    assert await shop.stands(half_id) is None


async def test_an_id_has_one_spelling(shop: Shop, half_id: uuid.UUID) -> None:
    """However it is written, both sides meet at the same row."""
    async with shop.sessions() as session, session.begin():
        await FENCE.commit(session, str(half_id).upper())
    assert await FENCE.resolve(shop.sessions, half_id) is COMMIT
    assert await FENCE.resolve(shop.engine, half_id.hex) is COMMIT


@dataclass
class Asked:
    id: uuid.UUID


async def test_the_checker_answers_for_the_half_message_it_is_asked_about(shop: Shop) -> None:
    """As a coroutine function with one parameter, of sessions or of an engine."""
    done, undone = Asked(uuid.uuid4()), Asked(uuid.uuid4())
    async with shop.sessions() as session, session.begin():
        await FENCE.commit(session, done.id)
    for place in (shop.sessions, shop.engine):
        checker = FENCE.checker(place)
        assert asyncio.iscoroutinefunction(checker)
        assert [await checker(done), await checker(undone)] == [COMMIT, ROLLBACK]


async def test_a_database_without_the_fence_decides_nothing(
    bare: Shop, half_id: uuid.UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """UNKNOWN, and a line that says why."""
    with caplog.at_level(logging.WARNING):
        assert await Fence(lock_seconds=0.1).resolve(bare.sessions, half_id) is UNKNOWN
    assert str(half_id) in caplog.text
    assert "relmsg_fence" in caplog.text
    await create_fence(bare.engine)
    assert await bare.stands(half_id) is None


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mariadb+aiomysql"])
async def test_a_database_that_is_away_decides_nothing(scheme: str, half_id: uuid.UUID) -> None:
    """UNKNOWN, also where the driver raises an error of its own kind."""
    async with shop_at(f"{scheme}://u:p@127.0.0.1:{free_ports(1)[0]}/x") as shop:
        assert await FENCE.resolve(shop.sessions, half_id) is UNKNOWN


async def test_a_database_that_refuses_the_checker_decides_nothing(shop: Shop, url: str, half_id: uuid.UUID) -> None:
    """UNKNOWN, and not an error of the driver's: a wrong password, or an SQLite that must not write."""
    if shop.kind == "sqlite":
        refused = f"sqlite+aiosqlite:///file:{make_url(url).database}?mode=ro&uri=true"
    else:
        refused = make_url(url).set(password="wrong").render_as_string(hide_password=False)
    async with shop_at(refused) as locked_out:
        assert await FENCE.resolve(locked_out.sessions, half_id) is UNKNOWN
    assert await shop.stands(half_id) is None


async def test_a_commit_of_the_checkers_that_fails_is_no_verdict(shop: Shop, half_id: uuid.UUID) -> None:
    """ROLLBACK is said only once it is in the database: whoever comes next is told what is there."""

    def fail(_: object) -> None:
        raise OperationalError("COMMIT", None, Exception("the connection is gone"))

    event.listen(shop.engine.sync_engine, "commit", fail)
    assert await FENCE.resolve(shop.sessions, half_id) is UNKNOWN
    event.remove(shop.engine.sync_engine, "commit", fail)
    assert await shop.stands(half_id) is None
    assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK


async def test_the_wait_is_as_short_as_it_was_asked_for(shop: Shop) -> None:
    """In the database's own words; a second is the least that MariaDB knows."""
    async with shop.engine.connect() as connection:
        async with waiting_at_most(connection, 0.25):
            inside = str(await connection.scalar(text(LOCK_SETTINGS[shop.kind])))
        assert inside == {"postgresql": "250ms", "mariadb": "1 1", "sqlite": "250"}[shop.kind]
        async with waiting_at_most(connection, 1.5):
            inside = str(await connection.scalar(text(LOCK_SETTINGS[shop.kind])))
        assert inside == {"postgresql": "1500ms", "mariadb": "2 2", "sqlite": "1500"}[shop.kind]


async def test_a_database_whose_words_are_not_known_gets_a_limit_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block ends by itself, and that is a TimeoutError."""
    async with shop_at("sqlite+aiosqlite://") as shop, shop.engine.connect() as connection:
        monkeypatch.setattr(connection.dialect, "name", "another")
        with pytest.raises(TimeoutError):
            async with waiting_at_most(connection, 0.01):
                await asyncio.Event().wait()


@pytest.mark.parametrize("end", ["open", "cancelled", "rolled back", "committed"])
async def test_the_short_wait_is_the_checkers_alone(shop: Shop, url: str, half_id: uuid.UUID, end: str) -> None:
    """The pool's connection waits for locks as long as before, however the check has ended."""
    async with shop_at(url, pool_size=1, max_overflow=0) as pooled:
        usual = await pooled.setting()
        if end == "committed":
            async with shop.sessions() as session, session.begin():
                await FENCE.commit(session, half_id)
        async with shop.sessions() as session:
            if end in ("open", "cancelled"):
                await FENCE.commit(session, half_id)
            patient = Fence(lock_seconds=20.0) if end == "cancelled" else FENCE
            sent = pooled.sent_insert()
            check = asyncio.create_task(patient.resolve(pooled.sessions, half_id))
            if end == "cancelled":
                await sent.wait()
                check.cancel()
                if shop.kind == "sqlite":  # nothing interrupts its thread, which waits for the lock
                    await session.rollback()
                with pytest.raises(asyncio.CancelledError):
                    await check
            else:
                assert await check is {"open": UNKNOWN, "rolled back": ROLLBACK, "committed": COMMIT}[end]
        assert await pooled.setting() == usual
    assert await shop.stands(half_id) == {"rolled back": "ROLLBACK", "committed": "COMMIT"}.get(end)


async def test_a_connection_that_commits_by_itself_is_refused(shop: Shop, url: str, half_id: uuid.UUID) -> None:
    """Told to the engine, to the connection or to the session: the fence would stand without the work."""
    async with shop_at(url, isolation_level="AUTOCOMMIT") as by_itself:
        async with by_itself.sessions() as session:
            with pytest.raises(TransactionRequired, match="AUTOCOMMIT"):
                await FENCE.commit(session, half_id)
        with pytest.raises(TransactionRequired):
            await FENCE.resolve(by_itself.sessions, half_id)
    options = {"isolation_level": "AUTOCOMMIT"}
    async with shop.sessions() as session:
        await session.connection(execution_options=options)
        with pytest.raises(TransactionRequired):
            await FENCE.commit(session, half_id)
    async with shop.engine.execution_options(**options).connect() as connection:
        with pytest.raises(TransactionRequired):
            await FENCE.commit(connection, half_id)
    assert await shop.stands(half_id) is None


async def test_sessions_that_share_a_connection_cannot_check(shop: Shop, half_id: uuid.UUID) -> None:
    """On the very connection of the open transaction its COMMIT would be seen, and believed."""
    async with shop.engine.connect() as connection:
        await FENCE.commit(connection, half_id)
        with pytest.raises(UsageError, match="bind the sessions to an engine"):
            await FENCE.resolve(async_sessionmaker(connection), half_id)
    async with shop_at("sqlite+aiosqlite://", poolclass=StaticPool) as memory:
        for place in (memory.sessions, memory.engine):
            with pytest.raises(UsageError, match="a connection of its own"):
                await FENCE.resolve(place, half_id)


async def test_sessions_of_several_databases_check_where_the_fence_is(shop: Shop, half_id: uuid.UUID) -> None:
    """The table says which of the session's engines is asked."""
    async with shop_at("sqlite+aiosqlite://") as elsewhere:
        sessions = async_sessionmaker(elsewhere.engine, binds={DEFAULT_TABLE: shop.engine})
        async with sessions() as session, session.begin():
            await FENCE.commit(session, half_id)
        assert await FENCE.resolve(sessions, half_id) is COMMIT
    assert await shop.stands(half_id) == "COMMIT"


async def test_many_instances_make_the_table_at_once(bare: Shop, half_id: uuid.UUID) -> None:
    """Each of them, at every start."""
    await asyncio.gather(*(create_fence(bare.engine) for _ in range(8)))
    await create_fence(bare.engine)
    assert await FENCE.resolve(bare.sessions, half_id) is ROLLBACK


async def test_a_table_that_cannot_be_made_is_an_error(shop: Shop) -> None:
    """It is not taken for one that another instance was quicker to make."""
    with pytest.raises(DBAPIError):
        await create_fence(shop.engine, fence_table(schema="nowhere"))


async def test_the_table_can_have_another_name(shop: Shop, half_id: uuid.UUID) -> None:
    """One of your own metadata, which your migrations make."""
    metadata = MetaData()
    fence = Fence(fence_table(metadata, "payment_fence"), lock_seconds=0.1)
    assert list(metadata.tables) == ["payment_fence"]
    async with shop.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await fence.commit(connection, half_id)
    assert await fence.resolve(shop.sessions, half_id) is COMMIT
    assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK


@pytest.mark.parametrize("scheme", ["mariadb+aiomysql", "mysql+aiomysql"])
async def test_the_table_is_transactional_whatever_the_servers_default(
    mariadb_url: str, half_id: uuid.UUID, scheme: str
) -> None:
    """MariaDB's MyISAM would keep a row of a transaction that was rolled back; under both names of the dialect."""
    url = make_url(mariadb_url).set(drivername=scheme).render_as_string(hide_password=False)
    async with shop_at(url, connect_args={"init_command": "SET SESSION default_storage_engine = MyISAM"}) as shop:
        async with shop.engine.begin() as connection:
            await connection.run_sync(DEFAULT_TABLE.drop, checkfirst=True)
        await create_fence(shop.engine)
        async with shop.sessions() as session:
            await FENCE.commit(session, half_id)
            assert await FENCE.resolve(shop.sessions, half_id) is UNKNOWN
            await session.rollback()
        assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK


async def test_mariadb_with_strict_snapshots_refuses_the_late_transaction(mariadb_url: str, half_id: uuid.UUID) -> None:
    """Where a snapshot is strict, as by default from 11.6 on, the late transaction ends with MariaDB's own error."""
    async with shop_at(mariadb_url) as shop:
        await create_fence(shop.engine)
        async with shop.sessions() as session:
            await session.execute(text("SET SESSION innodb_snapshot_isolation = ON"))
            await session.execute(select(DEFAULT_TABLE))
            assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK
            with pytest.raises(DBAPIError, match="Record has changed"):
                await FENCE.commit(session, half_id)
        assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK


async def test_sqlite_that_begins_by_a_listener_is_not_taken_for_autocommit(tmp_path: Path, half_id: uuid.UUID) -> None:
    """SQLAlchemy's own recipe switches the driver's transactions off, and sends BEGIN itself."""
    async with shop_at(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", connect_args={"timeout": 0.1}) as shop:

        @event.listens_for(shop.engine.sync_engine, "connect")
        def connect(driver: Any, _: object) -> None:
            driver.isolation_level = None

        @event.listens_for(shop.engine.sync_engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        await create_fence(shop.engine)
        async with shop.sessions() as session, session.begin():
            await FENCE.commit(session, half_id)
            assert await FENCE.resolve(shop.sessions, half_id) is UNKNOWN
        assert await FENCE.resolve(shop.sessions, half_id) is COMMIT


async def test_a_reader_that_keeps_sqlite_from_committing_leaves_the_half_undecided(
    tmp_path: Path, half_id: uuid.UUID
) -> None:
    """UNKNOWN, and no connection of the pool's holds the lock of the commit that failed."""
    async with shop_at(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", pool_size=1, max_overflow=0) as shop:
        await create_fence(shop.engine)
        with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM relmsg_fence").fetchall()
            assert await FENCE.resolve(shop.sessions, half_id) is UNKNOWN
        with contextlib.closing(sqlite3.connect(tmp_path / "shop.db", timeout=0.0)) as other:
            other.execute("BEGIN IMMEDIATE")
        assert await shop.stands(half_id) is None
        assert await FENCE.resolve(shop.sessions, half_id) is ROLLBACK


async def test_old_rows_are_pruned_and_no_others(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, by the database's own clock."""
    monkeypatch.setattr("relmsg.half.fence.PRUNED_AT_ONCE", 3)
    halves = [uuid.uuid4() for _ in range(9)]
    async with shop.engine.begin() as connection:
        for half_id in halves:
            await FENCE.commit(connection, half_id)
        now = await connection.scalar(select(DEFAULT_TABLE.c.decided_at).limit(1))
        old = DEFAULT_TABLE.c.half_id.in_([str(each) for each in halves[2:]])
        await connection.execute(update(DEFAULT_TABLE).where(old).values(decided_at=now - timedelta(days=31)))
    assert await FENCE.prune(shop.engine, timedelta(days=30)) == 7
    assert await FENCE.prune(shop.engine, timedelta(days=30)) == 0
    assert {await shop.stands(each) for each in halves[:2]} == {"COMMIT"}
    assert {await shop.stands(each) for each in halves[2:]} == {None}


@pytest.mark.parametrize("half_id", ["", "7", None, 7])
async def test_what_is_no_half_id_is_refused(half_id: Any) -> None:
    """With the rule, before the database is asked."""
    async with shop_at("sqlite+aiosqlite://") as shop, shop.sessions() as session:
        for refused in (FENCE.commit(session, half_id), FENCE.resolve(shop.sessions, half_id)):
            with pytest.raises(UsageError, match="it is a UUID"):
                await refused


async def test_a_session_that_is_not_async_is_refused() -> None:
    """The line says what is taken."""
    with pytest.raises(UsageError, match="an AsyncSession or an AsyncConnection, not a str"):
        await FENCE.commit("session", uuid.uuid4())  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_wait_of_no_time_is_refused(seconds: float) -> None:
    """Zero means for ever in PostgreSQL, and not at all in MariaDB."""
    with pytest.raises(UsageError, match="positive number of seconds"):
        Fence(lock_seconds=seconds)
