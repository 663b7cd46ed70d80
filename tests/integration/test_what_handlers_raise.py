"""Whatever a handler raises becomes the failure of its message, told as it was."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ForeignKey, String, event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from relmsg.clock import SystemClock
from relmsg.db.failures import is_contention, sqlstate
from relmsg.exceptions import causes, trace_of
from relmsg.inbox.attempt import Attempts, Task
from relmsg.inbox.gate import Gate
from relmsg.inbox.group import Committed, Groups
from relmsg.inbox.handler import Handler, parameters
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import Failed, Handled, HandlerEndedTransaction
from relmsg.inbox.rest import Rest
from relmsg.inbox.store import Store
from relmsg.message import Message
from relmsg.retry import Retry

Function = Callable[..., Awaitable[object]]
QUICK = Retry(attempts=2, base=0.001, cap=0.001)
WAYS = ("single", "group", "list")
MET = "DO $$ BEGIN RAISE EXCEPTION 'met' USING ERRCODE = '{}'; END $$"


class Model(DeclarativeBase):
    pass


class Account(Model):
    __tablename__ = "account"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(10), unique=True)


class Note(Model):
    __tablename__ = "note"
    id: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("account.id", deferrable=True, initially="DEFERRED"))


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.run_sync(Model.metadata.create_all)
        await connection.execute(text("INSERT INTO account VALUES ('0', 'taken')"))
    return engine


class Trial:
    """Handles one message with a function: alone, in a group, or as a list of one."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.sessions, self.metrics = sessions, Metrics()
        self.attempts = Attempts(sessions, Store(), Gate("database"), self.metrics, Rest(), SystemClock())
        self.groups = Groups(sessions, Store(), self.metrics, SystemClock())

    def task(self, function: Function, message_id: str, way: str, retry: Retry) -> Task:
        async def single(session: AsyncSession, message: Message) -> None:
            await function(session, message)

        async def many(session: AsyncSession, messages: list[Message]) -> None:
            for message in messages:
                await function(session, message)

        given = many if way == "list" else single
        handler = Handler(
            type="t", queue="q", consumer="c", function=given, retry=retry, timeout=30, parameters=parameters(given),
        )  # fmt: skip
        return Task(handler, Message(id=message_id, body=b"{}"), Identity("c", "s", message_id), None)

    async def handle(self, way: str, function: Function, *ids: str, retry: Retry = QUICK) -> Any:
        tasks = [self.task(function, each, way, retry) for each in ids or ("1",)]
        if way == "single":
            return [await self.attempts.handle(each, lambda attempt: attempt()) for each in tasks][-1]
        return await self.groups.once(tasks[0].handler, tasks)

    async def failure(self, way: str, function: Function) -> BaseException:
        outcome = await self.handle(way, function)
        assert isinstance(outcome, Failed), outcome
        return outcome.error

    async def accounts(self) -> list[str]:
        async with self.sessions() as session:
            return list(await session.scalars(text("SELECT id FROM account ORDER BY id")))


@pytest.fixture
def trial(sessions: async_sessionmaker[AsyncSession]) -> Trial:
    return Trial(sessions)


async def duplicate_key(session: AsyncSession, _: Message) -> None:
    session.add(Account(id="2", name="taken"))
    await session.flush()


async def missing_value(session: AsyncSession, _: Message) -> None:
    session.add(Account(id="2", name=None))
    await session.flush()


async def autoflush(session: AsyncSession, _: Message) -> None:
    session.add(Account(id="2", name="taken"))
    await session.scalars(text("SELECT 1"))
    await session.get(Account, "7")
    await session.scalars(select(Account))


async def left_to_us(session: AsyncSession, _: Message) -> None:
    session.add(Account(id="2", name="taken"))


async def swallowed(session: AsyncSession, _: Message) -> None:
    session.add(Account(id="2", name="taken"))
    with contextlib.suppress(IntegrityError):
        await session.flush()


async def used_after(session: AsyncSession, message: Message) -> None:
    await swallowed(session, message)
    await session.execute(text("SELECT 1"))


async def core_used_after(session: AsyncSession, _: Message) -> None:
    with contextlib.suppress(IntegrityError):
        await session.execute(text("INSERT INTO account VALUES ('2', 'taken')"))
    await session.execute(text("SELECT 1"))


async def nested(session: AsyncSession, _: Message) -> None:
    async with session.begin_nested():
        session.add(Account(id="2", name="taken"))


async def core(session: AsyncSession, _: Message) -> None:
    await session.execute(text("INSERT INTO account VALUES ('2', 'taken')"))


async def wrapped(session: AsyncSession, message: Message) -> None:
    try:
        await duplicate_key(session, message)
    except IntegrityError as error:
        raise IntegrityError("mine", None, error) from error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "function",
    [
        duplicate_key,
        missing_value,
        autoflush,
        left_to_us,
        swallowed,
        used_after,
        core_used_after,
        nested,
        core,
        wrapped,
    ],
    ids=lambda function: function.__name__,
)
async def test_a_failed_statement_is_told_with_its_constraint(trial: Trial, way: str, function: Function) -> None:
    """Whichever way a statement went, the error is the database's own, and its trace names a line."""
    error = await trial.failure(way, function)
    assert isinstance(error, IntegrityError), error
    assert "account_name_key" in trace_of(error) or "null value" in trace_of(error)
    assert "line" in trace_of(error)
    assert await trial.accounts() == ["0"]


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_at_the_commit_is_told_with_its_constraint(trial: Trial, way: str) -> None:
    """What a deferred constraint refuses fails with that constraint's name."""

    async def defer(session: AsyncSession, _: Message) -> None:
        session.add(Note(id="1", account="nobody"))

    assert "note_account_fkey" in trace_of(await trial.failure(way, defer))


@pytest.mark.parametrize("way", WAYS)
async def test_a_failed_flush_without_the_database_is_told_too(trial: Trial, way: str) -> None:
    """What a listener of the user's refuses during the flush is the failure, also where the handler swallows it."""

    async def refuse(session: AsyncSession, _: Message) -> None:
        def no(*_: Any) -> None:
            raise LookupError("refused by a listener")

        event.listen(Account, "before_insert", no)
        try:
            session.add(Account(id="3", name="new"))
            with contextlib.suppress(LookupError):
                await session.flush()
        finally:
            event.remove(Account, "before_insert", no)

    assert isinstance(await trial.failure(way, refuse), LookupError)


@pytest.mark.parametrize("way", WAYS)
async def test_a_rollback_after_a_failed_flush_keeps_the_reason(trial: Trial, way: str) -> None:
    """A handler that rolls back has ended the transaction, and the error that made it do so is the cause."""

    async def give_up(session: AsyncSession, message: Message) -> None:
        await swallowed(session, message)
        await session.rollback()

    error = await trial.failure(way, give_up)
    assert isinstance(error, HandlerEndedTransaction)
    assert any(isinstance(each, IntegrityError) for each in causes(error))


async def met_by_core(session: AsyncSession, code: str) -> None:
    await session.execute(text(MET.format(code)))


async def met_by_flush(session: AsyncSession, code: str) -> None:
    await _breaking(session, code)
    session.add(Account(id="5", name="five"))
    await session.flush()


async def met_by_our_flush(session: AsyncSession, code: str) -> None:
    await _breaking(session, code)
    session.add(Account(id="5", name="five"))


async def met_by_nested(session: AsyncSession, code: str) -> None:
    async with session.begin_nested():
        await met_by_flush(session, code)


async def met_at_commit(session: AsyncSession, code: str) -> None:
    await _breaking(session, code, "CONSTRAINT", "AFTER", "DEFERRABLE INITIALLY DEFERRED")
    session.add(Account(id="5", name="five"))


async def met_by_driver(session: AsyncSession, code: str) -> None:
    raw = await (await session.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.execute(MET.format(code))


async def met_in_a_task_group(session: AsyncSession, code: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(met_by_core(session, code))


async def met_and_renamed(session: AsyncSession, code: str) -> None:
    try:
        await met_by_flush(session, code)
    except DBAPIError as error:
        raise ValueError("could not book") from error


async def _breaking(session: AsyncSession, code: str, kind: str = "", when: str = "BEFORE", how: str = "") -> None:
    await session.execute(
        text(f"CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'met' "
             f"USING ERRCODE = '{code}'; END $$")
    )  # fmt: skip
    await session.execute(
        text(f"CREATE {kind} TRIGGER broken {when} INSERT ON account {how} FOR EACH ROW EXECUTE FUNCTION broken()")
    )


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
@pytest.mark.parametrize(
    "meet",
    [met_by_core, met_by_flush, met_by_our_flush, met_by_nested, met_at_commit, met_by_driver, met_in_a_task_group,
     met_and_renamed],
    ids=lambda meet: meet.__name__,
)  # fmt: skip
async def test_contention_is_tried_again_whichever_way_it_came(
    trial: Trial, code: str, meet: Callable[[AsyncSession, str], Awaitable[None]]
) -> None:
    """A serialization failure, a deadlock or a lock timeout is tried again, whatever the policy says of errors."""
    calls = 0

    async def handler(session: AsyncSession, _: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await meet(session, code)

    never = Retry(attempts=2, base=0.001, never=(Exception,))
    assert isinstance(await trial.handle("single", handler, retry=never), Handled)
    assert calls == 2
    for way, message_id in (("group", "2"), ("list", "3")):
        calls = 0
        outcome = await trial.handle(way, handler, message_id)
        assert isinstance(outcome, Failed)
        assert is_contention(outcome.error)
        assert isinstance(await trial.handle(way, handler, message_id), Committed)


class Panic(BaseException):
    """As pyo3 makes of a Rust extension's panic."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "raised",
    [Panic("index out of bounds"), GeneratorExit(), KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(),
     BaseExceptionGroup("two", [Panic("one"), KeyError("two")])],
    ids=lambda raised: type(raised).__name__,
)  # fmt: skip
async def test_what_is_no_exception_is_a_failure_too(trial: Trial, way: str, raised: BaseException) -> None:
    """A panic, GeneratorExit, KeyboardInterrupt or SystemExit that code raises fails the message and nothing else."""

    async def handler(session: AsyncSession, message: Message) -> None:
        await session.execute(text("INSERT INTO account VALUES ('9', 'nine')"))
        raise raised

    error = await trial.failure(way, handler)
    assert any(each is raised for each in causes(error)) or isinstance(error.__cause__, asyncio.CancelledError)
    assert await trial.accounts() == ["0"]


async def test_a_real_cancellation_passes_through_the_handler(trial: Trial) -> None:
    """Who cancels the task that handles a message cancels the handler, and is told so."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(session: AsyncSession, message: Message) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    task = asyncio.create_task(trial.handle("single", handler))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


class Hostile(Exception):
    @property
    def args(self) -> Any:
        raise RuntimeError("args")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("class")

    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __str__


class Hanging(Exception):
    def __str__(self) -> str:
        time.sleep(20)
        return "never"


class Raising(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Hostile, Hanging, Raising, lambda: ValueError("x" * 3_000_000)])
async def test_an_exception_that_cannot_be_read_is_a_failure(
    trial: Trial, way: str, kind: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Whose text raises, hangs or is megabytes long: it is the message's failure, and the log stays short."""

    async def handler(session: AsyncSession, message: Message) -> None:
        raise kind()

    caplog.set_level("DEBUG", "relmsg")
    began = time.monotonic()
    assert isinstance(await trial.handle(way, handler), Failed)
    assert time.monotonic() - began < 10
    assert sum(len(each) for each in caplog.messages) < 100_000


@pytest.mark.parametrize("way", WAYS)
async def test_never_is_looked_for_inside_groups_and_causes(trial: Trial, way: str) -> None:
    """An error that is never retried ends the retries also from within a TaskGroup, and behind another error."""
    calls = 0

    async def fail() -> None:
        try:
            raise KeyError("gone")
        except KeyError as error:
            raise ValueError("wrapped") from error

    async def handler(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        calls += 1
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    outcome = await trial.handle(way, handler, retry=Retry(attempts=5, base=0.001, never=(KeyError,)))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ExceptionGroup)
    assert calls == 1


seen: ContextVar[str] = ContextVar("seen", default="")


@pytest.mark.parametrize("way", WAYS)
async def test_no_handler_sees_what_another_has_set(trial: Trial, way: str) -> None:
    """Each call of a handler has context variables of its own, and its own tasks and statements share them."""
    found = []

    async def handler(session: AsyncSession, message: Message) -> None:
        found.append(seen.get())
        seen.set(str(message.id))
        await session.execute(text("SELECT 1"))
        async with asyncio.timeout(5):
            assert await asyncio.create_task(_get()) == str(message.id)
        await session.run_sync(lambda _: seen.get() == str(message.id) or pytest.fail("lost in a greenlet"))

    await trial.handle(way, handler, "1", "2", "3")
    assert found[0] == ""
    assert seen.get() == ""
    if way != "list":
        assert found == ["", "", ""]


async def _get() -> str:
    await asyncio.sleep(0)
    return seen.get()


async def test_an_attempt_does_not_see_what_the_one_before_has_set(trial: Trial) -> None:
    """A retry begins with context variables as they were."""
    found = []

    async def handler(session: AsyncSession, message: Message) -> None:
        found.append(seen.get())
        seen.set("set")
        raise ValueError

    await trial.handle("single", handler)
    assert found == ["", ""]


async def test_the_drivers_own_errors_keep_their_code(trial: Trial) -> None:
    """An error from the driver's connection reaches the diagnosis as asyncpg raised it."""

    async def handler(session: AsyncSession, message: Message) -> None:
        await met_by_driver(session, "23505")

    error = await trial.failure("single", handler)
    assert isinstance(error, asyncpg.UniqueViolationError)
    assert sqlstate(error) == "23505"
