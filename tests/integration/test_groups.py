"""Group commit on a real database: all of a group commits, or nothing of it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from relmsg.clock import SystemClock
from relmsg.db.failures import sqlstate
from relmsg.inbox.attempt import Task
from relmsg.inbox.group import Committed, Groups
from relmsg.inbox.handler import Handler, parameters
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import Duplicate, Failed, Handled, StatementSwallowed, Unsettled
from relmsg.inbox.store import Store
from relmsg.message import Message
from relmsg.retry import Retry

Function = Callable[..., Awaitable[object]]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (id text, unit int UNIQUE DEFERRABLE)"))
        await connection.run_sync(Base.metadata.create_all)
    return engine


class Trial:
    """Handles groups with a function, and looks at what is committed."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.sessions = sessions
        self.store = Store()
        self.groups = Groups(sessions, self.store, Metrics(), SystemClock())

    async def once(self, function: Function, *ids: str, timeout: float = 30) -> Committed | Failed | Unsettled:
        handler = Handler(
            type="t", queue="q", consumer="c", function=function, retry=Retry(), timeout=timeout,
            parameters=parameters(function), group=50,
        )  # fmt: skip
        tasks = [
            Task(handler, message, Identity("c", "s", str(message.id)), handler.decode(message))
            for message in (Message(id=each, body=f'{{"id": "{each}"}}'.encode()) for each in ids)
        ]
        return await self.groups.once(handler, tasks)

    async def outcomes(self, function: Function, *ids: str) -> list[Any]:
        committed = await self.once(function, *ids)
        assert isinstance(committed, Committed)
        return committed.outcomes

    async def effects(self) -> list[str]:
        return await self._scalars("SELECT id FROM effect ORDER BY id")

    async def remembered(self) -> list[str]:
        return await self._scalars("SELECT message_id FROM relmsg.inbox_message ORDER BY message_id")

    async def _scalars(self, query: str) -> list[str]:
        async with self.sessions() as session:
            return list(await session.scalars(text(query)))


@pytest.fixture
def trial(sessions: async_sessionmaker[AsyncSession]) -> Trial:
    return Trial(sessions)


async def effect(session: AsyncSession, message: Message) -> None:
    await session.execute(text("INSERT INTO effect (id) VALUES (:id)"), {"id": str(message.id)})


async def test_each_new_message_of_a_group_takes_effect_once(trial: Trial) -> None:
    """What was handled before, in a group or alone, is a duplicate; so is the second copy within one group."""
    assert await trial.outcomes(effect, "1", "2") == [Handled(), Handled()]
    expected = [Handled(), Duplicate(), Handled(), Duplicate(), Duplicate()]
    assert await trial.outcomes(effect, "3", "1", "4", "3", "2") == expected
    assert await trial.outcomes(effect, "4", "4", "1") == [Duplicate()] * 3
    assert await trial.effects() == await trial.remembered() == ["1", "2", "3", "4"]


async def test_a_group_is_one_transaction_with_one_statement_for_all_inbox_rows(
    trial: Trial, engine: AsyncEngine
) -> None:
    """Besides what the handlers send there is one INSERT for a group of any size, and no savepoint."""
    sent: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    event.listen(engine.sync_engine, "savepoint", lambda *_: sent.append("SAVEPOINT"))
    await trial.outcomes(effect, *map(str, range(20)))
    assert sum("INSERT INTO effect" in each for each in sent) == 20
    (ours,) = [each for each in sent if "INSERT INTO effect" not in each]
    assert "inbox_message" in ours
    async with trial.sessions() as session:
        assert await session.scalar(text("SELECT count(DISTINCT xmin::text) FROM effect")) == 1


async def test_an_error_swallowed_past_sqlalchemy_costs_the_neighbours_nothing(trial: Trial) -> None:
    """Where a handler lets a failed statement of the driver's own connection pass, the group is not taken for
    committed: nothing of it is, and nothing is remembered."""

    async def careless(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        if message.id == "2":
            connection = session.sync_session.connection().connection.driver_connection
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute("SELECT 1 / 0")  # type: ignore[union-attr]

    outcome = await trial.once(careless, "1", "2")
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, StatementSwallowed)
    assert await trial.effects() == await trial.remembered() == []


async def test_ids_of_any_kind_in_one_group(trial: Trial) -> None:
    """Ids are text of anyone's making."""
    ids = ["x" * 255, "'; DROP TABLE effect; --", "日本語 🐘", " 1", "1", "{a,b}", "NULL", '"', "\\"]
    assert await trial.outcomes(effect, *ids) == [Handled()] * len(ids)
    assert await trial.outcomes(effect, *reversed(ids)) == [Duplicate()] * len(ids)


async def test_two_groups_with_the_same_messages_in_another_order_do_not_deadlock(trial: Trial) -> None:
    """Inbox rows are locked in the order of their keys, whatever the order of the deliveries (C4)."""
    ids = [str(n) for n in range(40)]

    async def until_committed(order: list[str]) -> list[Any]:
        for _ in range(50):  # the other may hold the rows for longer than ours waits on a busy machine
            result = await trial.once(effect, *order)
            if not (isinstance(result, Failed) and sqlstate(result.error) == "55P03"):
                break
        assert isinstance(result, Committed), result
        return result.outcomes

    for _ in range(10):
        one, other = await asyncio.gather(until_committed(ids), until_committed(ids[::-1]))
        assert sorted(map(type, one + other), key=repr) == [Duplicate] * 40 + [Handled] * 40
        async with trial.sessions() as session, session.begin():
            await session.execute(text("DELETE FROM relmsg.inbox_message"))


async def test_rows_of_several_sources_are_written_in_the_order_of_their_keys(trial: Trial) -> None:
    """By source, then by id, as every version before wrote them: beside those, too, no group deadlocks."""
    identities = [Identity("c", source, str(n)) for n in range(12) for source in ("b", "a", "c", "ä", "")]
    async with trial.sessions() as session, session.begin():
        await session.run_sync(lambda sync: trial.store.once_each(sync.connection(), identities))
        rows = await session.execute(text("SELECT source, message_id FROM relmsg.inbox_message ORDER BY ctid"))
        assert [Identity("c", *row) for row in rows] == sorted(identities)


async def commits(session: AsyncSession) -> None:
    await session.commit()


async def swallows_the_refusal(session: AsyncSession) -> None:
    try:
        await session.commit()
    except Exception:
        return


async def rolls_back(session: AsyncSession) -> None:
    await session.rollback()


async def closes(session: AsyncSession) -> None:
    await session.close()


async def commits_the_connection(session: AsyncSession) -> None:
    await (await session.connection()).commit()


async def rolls_back_the_connection(session: AsyncSession) -> None:
    await (await session.connection()).rollback()


async def sends_commit_as_text(session: AsyncSession) -> None:
    await session.execute(text(" commit"))


async def sends_rollback_as_text(session: AsyncSession) -> None:
    await (await session.connection()).exec_driver_sql("ROLLBACK")


async def swallows_an_error(session: AsyncSession) -> None:
    try:
        await session.execute(text("SELECT 1 / 0"))
    except DBAPIError:
        return


async def breaks_a_deferred_constraint(session: AsyncSession) -> None:
    await session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
    await session.execute(text("INSERT INTO effect (unit) VALUES (1), (1)"))


async def cannot_be_flushed(session: AsyncSession) -> None:
    session.add_all([Account(id="a", balance=1)])
    await session.flush()
    await session.execute(text("UPDATE account SET id = 'b'"))
    session.expunge_all()
    session.add(Account(id="b", balance=2))


async def raises(session: AsyncSession) -> None:
    raise ValueError("no")


async def exits(session: AsyncSession) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "bad",
    [
        commits, swallows_the_refusal, rolls_back, closes, commits_the_connection, rolls_back_the_connection,
        sends_commit_as_text, sends_rollback_as_text, swallows_an_error, breaks_a_deferred_constraint,
        cannot_be_flushed, raises, exits,
    ],
    ids=lambda function: function.__name__,
)  # fmt: skip
async def test_one_bad_message_takes_nothing_along_and_loses_nothing(trial: Trial, bad: Function) -> None:
    """Whatever one handler does to the shared transaction: nothing of the group is committed, nothing remembered."""

    async def handle(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        if message.id == "bad":
            await bad(session)

    assert isinstance(await trial.once(handle, "1", "bad", "2"), Failed)
    assert (await trial.effects(), await trial.remembered()) == ([], [])
    assert await trial.outcomes(effect, "1", "bad", "2") == [Handled()] * 3


async def test_a_commit_past_sqlalchemy_makes_no_unhandled_message_a_duplicate(trial: Trial) -> None:
    """A COMMIT on the driver's own connection takes along what was done, and never inbox rows of what was not."""

    async def handle(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        if message.id == "bad":
            raw = await (await session.connection()).get_raw_connection()
            await raw.driver_connection.execute("COMMIT")

    assert isinstance(await trial.once(handle, "1", "bad", "2", "3"), Failed)
    assert await trial.remembered() == ["1"]
    assert await trial.effects() == ["1", "bad"]


async def test_what_is_taken_back_is_never_the_work_of_another_transaction(trial: Trial) -> None:
    """After a ROLLBACK on the driver's own connection a copy of a later message is handled elsewhere: that stays."""

    async def handle(session: AsyncSession, message: Message) -> None:
        if message.id == "bad":
            raw = await (await session.connection()).get_raw_connection()
            await raw.driver_connection.execute("ROLLBACK")
            assert await trial.outcomes(effect, "2") == [Handled()]

    assert isinstance(await trial.once(handle, "1", "bad", "2"), Failed)
    assert await trial.effects() == await trial.remembered() == ["2"]


async def test_the_drivers_connection_is_at_hand_without_an_await_and_in_the_transaction(trial: Trial) -> None:
    """What a handler writes there, from the first message on, commits or rolls back with its group."""

    async def handle(session: AsyncSession, message: Message) -> None:
        driver: Any = session.sync_session.connection().connection.driver_connection
        assert driver.is_in_transaction()
        await driver.execute("INSERT INTO effect (id) VALUES ($1)", str(message.id))
        if message.id == "bad":
            raise ValueError

    assert isinstance(await trial.once(handle, "1", "2", "bad"), Failed)
    assert (await trial.effects(), await trial.remembered()) == ([], [])
    assert await trial.outcomes(handle, "1", "2") == [Handled()] * 2
    assert await trial.effects() == await trial.remembered() == ["1", "2"]


async def test_savepoints_are_the_handlers_own_in_a_group_too(trial: Trial) -> None:
    """An error that one handler heals with a savepoint harms nobody."""

    async def careful(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        try:
            async with session.begin_nested():
                await effect(session, message)
                await session.execute(text("SELECT 1 / 0"))
        except DBAPIError:
            return

    assert await trial.outcomes(careful, "1", "2", "3") == [Handled()] * 3
    assert await trial.effects() == ["1", "2", "3"]


async def test_each_handler_finds_an_empty_session_with_its_predecessors_writes_in_the_database(trial: Trial) -> None:
    """Objects are not shared between messages, and nothing pending can be lost by what a later handler does."""
    async with trial.sessions() as session, session.begin():
        session.add(Account(id="a", balance=0))
    found: list[int] = []
    kept: list[Account] = []  # a session lets go by itself of what nobody else holds

    async def deposit(session: AsyncSession, message: Message) -> None:
        found.append(len(session.identity_map))
        account = await session.get_one(Account, "a")
        kept.append(account)
        account.balance += 1
        session.add(Account(id=str(message.id), balance=0))
        if message.id == "3":
            await session.flush()
            session.expunge_all()

    assert await trial.outcomes(deposit, "1", "2", "3", "4") == [Handled()] * 4
    async with trial.sessions() as session:
        assert (await session.get_one(Account, "a")).balance == 4
        assert await session.scalar(text("SELECT count(*) FROM account")) == 5
    assert found == [0, 0, 0, 0]


async def test_a_group_that_takes_long_is_closed_early(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done commits; the rest is as if it had not been in the group, copies of it included."""
    monkeypatch.setattr("relmsg.inbox.group.OVERRUN_SECONDS", -1.0)
    assert await trial.outcomes(effect, "1", "2", "1", "2", "3") == [Handled(), None, Duplicate(), None, None]
    assert await trial.effects() == await trial.remembered() == ["1"]


async def test_a_slow_handler_fails_its_group(trial: Trial) -> None:
    """The timeout is for one handler; it rolls the group back, and says so."""

    async def slow(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        if message.id == "2":
            await session.execute(text("SELECT pg_sleep(30)"))

    result = await trial.once(slow, "1", "2", "3", timeout=0.2)
    assert isinstance(result, Failed)
    assert result.reason == "handler_timeout"
    assert await trial.remembered() == []


async def test_a_group_that_waits_too_long_for_a_lock_has_failed(trial: Trial, engine: AsyncEngine) -> None:
    """Two transactions in each other's way are no reason to pause the consumer: the messages go on one by one."""
    async with trial.sessions() as other, other.begin():
        await other.execute(text("LOCK TABLE relmsg.inbox_message"))
        event.listen(engine.sync_engine, "begin", lambda connection: connection.execute(text("SET lock_timeout = 50")))
        assert isinstance(await trial.once(effect, "1", "2"), Failed)
    assert await trial.outcomes(effect, "1", "2") == [Handled(), Handled()]


async def test_a_cut_connection_splits_the_group(trial: Trial) -> None:
    """A group that loses its own connection has failed: its messages go on one by one, nothing of it is there."""

    async def unlucky(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        if message.id == "2":
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            async with trial.sessions() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            await session.execute(text("SELECT 1"))

    assert isinstance(await trial.once(unlucky, "1", "2"), Failed)
    assert (await trial.effects(), await trial.remembered()) == ([], [])


async def test_a_cancelled_group_leaves_nothing(trial: Trial) -> None:
    """Cancelled in the middle of a handler, the group is rolled back and its messages can be handled again."""
    begun = asyncio.Event()

    async def wait(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        if message.id == "2":
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(trial.once(wait, "1", "2"))
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await trial.outcomes(effect, "1", "2") == [Handled(), Handled()]


async def test_a_list_handler_gets_what_is_new_once_and_in_order(trial: Trial) -> None:
    """Both lists correspond; duplicates are left out; if there is nothing new, it is not called."""
    seen: list[list[tuple[str, str]]] = []

    async def store(events: list[dict], session: AsyncSession, messages: list[Message]) -> None:  # type: ignore[type-arg]
        seen.append([(str(message.id), event["id"]) for message, event in zip(messages, events, strict=True)])
        for message in messages:
            await effect(session, message)

    await trial.outcomes(effect, "b")
    assert await trial.outcomes(store, "c", "b", "a", "c") == [Handled(), Duplicate(), Handled(), Duplicate()]
    assert await trial.outcomes(store, "c", "b") == [Duplicate(), Duplicate()]
    assert seen == [[("c", "c"), ("a", "a")]]
    assert await trial.effects() == ["a", "b", "c"]


async def test_a_list_handler_that_raises_leaves_nothing(trial: Trial) -> None:
    """An error in the call is the failure of the whole list."""

    async def store(messages: list[Message], session: AsyncSession) -> None:
        await effect(session, messages[0])
        raise ValueError("no")

    assert isinstance(await trial.once(store, "1", "2"), Failed)
    assert (await trial.effects(), await trial.remembered()) == ([], [])
