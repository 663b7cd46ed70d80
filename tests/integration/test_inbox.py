"""One attempt on a real database: the inbox row and the effect commit together, or nothing does."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg.clock import SystemClock
from relmsg.inbox.attempt import Attempts, Task
from relmsg.inbox.gate import Gate
from relmsg.inbox.handler import Handler, parameters
from relmsg.inbox.identity import Identity
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import (
    Duplicate,
    Failed,
    Handled,
    HandlerEndedTransaction,
    Outcome,
    StatementSwallowed,
    Unsettled,
)
from relmsg.inbox.rest import Rest
from relmsg.inbox.starts import Starts
from relmsg.inbox.store import Store
from relmsg.message import Message
from relmsg.outbox.publish import Outbox
from relmsg.retry import Retry
from tests.support.proxy import Proxy

Function = Callable[..., Awaitable[object]]
QUICK = Retry(attempts=3, base=0.001, cap=0.001)


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (id text, unit int UNIQUE DEFERRABLE)"))
    return engine


class Trial:
    """Handles messages with a function, as the consumer does, and looks at what is committed."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self.sessions = sessions
        self.store = Store()
        self.gate = Gate("database")
        self.attempts = Attempts(sessions, self.store, self.gate, Metrics(), Rest(), SystemClock())

    def task(
        self, function: Function, message_id: str = "1", *, timeout: float = 30, retry: Retry = QUICK, **identity: str
    ) -> Task:
        handler = Handler(
            type="t", queue="q", consumer="c", function=function, retry=retry, timeout=timeout,
            parameters=parameters(function),
        )  # fmt: skip
        key = {"consumer": "c", "source": "s", "message_id": message_id} | identity
        return Task(handler, Message(id=message_id, body=b"{}"), Identity(**key), None)

    async def handle(self, function: Function, message_id: str = "1", **options: Any) -> Outcome:
        return await self.attempts.handle(self.task(function, message_id, **options), lambda attempt: attempt())

    async def once(self, function: Function, message_id: str = "1", **options: Any) -> Outcome:
        return await self.attempts.once(self.task(function, message_id, **options))

    async def committed(self) -> tuple[int, int]:
        """How many effects, and how many inbox rows."""
        async with self.sessions() as session:
            row = await session.execute(
                text("SELECT (SELECT count(*) FROM effect), (SELECT count(*) FROM relmsg.inbox_message)")
            )
            return tuple(row.one())  # type: ignore[return-value]


@pytest.fixture
def trial(sessions: async_sessionmaker[AsyncSession]) -> Trial:
    return Trial(sessions)


async def effect(session: AsyncSession, message: Message) -> None:
    await session.execute(text("INSERT INTO effect (id) VALUES (:id)"), {"id": str(message.id)})


async def test_a_message_takes_effect_once(trial: Trial) -> None:
    """The second time, the message is a duplicate and its handler is not called."""
    assert await trial.handle(effect) == Handled(attempts=1)
    assert await trial.handle(effect) == Duplicate()
    assert await trial.committed() == (1, 1)


async def test_what_a_handler_publishes_commits_with_its_effect(trial: Trial) -> None:
    """Messages that a handler puts into the outbox are there exactly if its effect is."""
    outbox, broken = Outbox(source="billing"), True

    async def forward(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        await outbox.publish(session, Message(exchange="shop", routing_key="paid", body={"id": 7}))
        if broken:
            raise ValueError("after publishing")

    async def published() -> int:
        async with trial.sessions() as session:
            return int(await session.scalar(text("SELECT count(*) FROM relmsg.outbox_message")) or 0)

    await trial.handle(forward)
    assert (await published(), await trial.committed()) == (0, (0, 0))
    broken = False
    for _ in range(2):
        await trial.handle(forward)
        assert (await published(), await trial.committed()) == (1, (1, 1))


async def test_ten_copies_at_once_take_effect_once(trial: Trial) -> None:
    """Of ten concurrent copies one is handled; the others wait for its transaction and are duplicates (C4)."""
    outcomes = await asyncio.gather(*(trial.handle(effect) for _ in range(10)))
    assert sorted(type(each).__name__ for each in outcomes) == ["Duplicate"] * 9 + ["Handled"]
    assert await trial.committed() == (1, 1)


async def test_copies_at_repeatable_read_take_effect_once(database_url: str, trial: Trial, engine: AsyncEngine) -> None:
    """Where the waiting copy gets a serialisation failure instead, it is tried again and is a duplicate then (C4)."""
    strict = create_async_engine(database_url, isolation_level="REPEATABLE READ", pool_size=10)
    outcomes = await asyncio.gather(*(Trial(async_sessionmaker(strict)).handle(effect) for _ in range(6)))
    assert sorted(type(each).__name__ for each in outcomes) == ["Duplicate"] * 5 + ["Handled"]
    assert await trial.committed() == (1, 1)
    await strict.dispose()


async def test_consumers_and_sources_do_not_share_ids(trial: Trial) -> None:
    """Two handlers that want the same message, and two producers with the same id, each get their effect (C1)."""
    for identity in ({}, {"consumer": "other"}, {"source": "other"}, {"source": ""}):
        assert isinstance(await trial.handle(effect, **identity), Handled)
    assert await trial.committed() == (4, 4)


async def test_a_failed_attempt_leaves_nothing(trial: Trial) -> None:
    """What a handler wrote before it raised is rolled back with the inbox row, so the message can be handled later."""

    async def fail(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        raise ValueError("no")

    outcome = await trial.handle(fail)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts, str(outcome.error)) == ("handler_failed", 3, "no")
    assert await trial.committed() == (0, 0)
    assert isinstance(await trial.handle(effect), Handled)


async def test_the_attempt_that_succeeds_counts(trial: Trial) -> None:
    """A handler that fails twice and then succeeds has its effect once."""
    calls = 0

    async def flaky(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        calls += 1
        await effect(session, message)
        if calls < 3:
            raise OSError("the service it calls is away")

    assert await trial.handle(flaky) == Handled(attempts=3)
    assert await trial.committed() == (1, 1)


async def test_what_never_retries_is_tried_once(trial: Trial) -> None:
    """An exception listed in `never` spends no second attempt."""

    async def fail(message: Message) -> None:
        raise KeyError("x")

    outcome = await trial.handle(fail, retry=Retry(attempts=5, never=(KeyError,)))
    assert isinstance(outcome, Failed)
    assert outcome.attempts == 1


async def test_a_slow_handler_is_cancelled_and_rolled_back(trial: Trial) -> None:
    """After its timeout a handler is cancelled in mid-statement; that is a failed attempt and can be retried."""

    async def slow(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        await session.execute(text("SELECT pg_sleep(30)"))

    async with asyncio.timeout(10):
        outcome = await trial.handle(slow, timeout=0.2, retry=Retry(attempts=2, base=0.001))
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts) == ("handler_timeout", 2)
    assert "0.2 s" in str(outcome.error)
    assert await trial.committed() == (0, 0)
    assert isinstance(await trial.handle(effect), Handled)


async def test_a_handler_that_swallows_its_timeout_has_still_timed_out(trial: Trial) -> None:
    """A handler that was told to stop cannot have its half work committed by ignoring that."""

    async def deaf(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return

    outcome = await trial.once(deaf, timeout=0.05)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "handler_timeout"
    assert await trial.committed() == (0, 0)


async def test_its_own_timeout_is_the_handlers_failure(trial: Trial) -> None:
    """A TimeoutError out of the handler's own work is handler_failed, not handler_timeout, and no outage."""

    async def impatient(session: AsyncSession) -> None:
        async with asyncio.timeout(0.05):
            await session.execute(text("SELECT pg_sleep(30)"))

    outcome = await trial.once(impatient)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "handler_failed"


async def test_a_cancellation_nobody_asked_for_is_a_failure(trial: Trial) -> None:
    """A CancelledError that comes out of a library (P3) ends the attempt, and not the consumer."""

    async def broken(message: Message) -> None:
        raise asyncio.CancelledError

    outcome = await trial.handle(broken)
    assert isinstance(outcome, Failed)
    assert outcome.attempts == 3


async def commits(session: AsyncSession, message: Message) -> None:
    await effect(session, message)
    await session.commit()


async def swallows_the_refusal(session: AsyncSession, message: Message) -> None:
    await effect(session, message)
    try:
        await session.commit()
    except Exception:
        return


async def rolls_back(session: AsyncSession, message: Message) -> None:
    await session.rollback()
    await effect(session, message)


async def closes(session: AsyncSession, message: Message) -> None:
    await session.close()
    await effect(session, message)


async def commits_from_a_savepoint(session: AsyncSession, message: Message) -> None:
    async with session.begin_nested():
        await effect(session, message)
        await session.commit()


async def sends_rollback_as_text(session: AsyncSession, message: Message) -> None:
    await session.execute(text("ROLLBACK"))


@pytest.mark.parametrize(
    "function",
    [commits, swallows_the_refusal, rolls_back, closes, commits_from_a_savepoint, sends_rollback_as_text],
    ids=lambda function: function.__name__,
)
async def test_a_handler_cannot_end_the_transaction(trial: Trial, function: Function) -> None:
    """A handler that commits, rolls back or closes its session fails with a text that says so; nothing is committed."""
    outcome = await trial.handle(function)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "handler_ended_transaction"
    assert isinstance(outcome.error, HandlerEndedTransaction)
    assert "begin_nested" not in str(outcome.error).split(":")[0]
    assert outcome.attempts == 1
    assert await trial.committed() == (0, 0)


async def test_savepoints_are_the_handlers_own(trial: Trial) -> None:
    """A part of the handler's work may be rolled back alone, also after an error in it."""

    async def careful(session: AsyncSession, message: Message) -> None:
        async with session.begin_nested():
            await effect(session, message)
        for broken in ("INSERT INTO effect (unit) VALUES ('x')", "SELECT * FROM nowhere"):
            try:
                async with session.begin_nested():
                    await effect(session, message)
                    await session.execute(text(broken))
            except DBAPIError:
                continue
        part = await session.begin_nested()
        await effect(session, message)
        await part.rollback()

    assert isinstance(await trial.once(careful), Handled)
    assert await trial.committed() == (1, 1)


async def test_a_swallowed_database_error_is_not_handled(trial: Trial) -> None:
    """PostgreSQL answers the COMMIT of a failed transaction with a silent rollback: such a message is never acked."""

    async def careless(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        try:
            await session.execute(text("INSERT INTO effect (unit) VALUES (1 / 0)"))
        except DBAPIError:
            return

    outcome = await trial.once(careless)
    assert isinstance(outcome, Failed)
    assert "division by zero" in str(outcome.error)
    assert await trial.committed() == (0, 0)


async def through_the_driver(session: AsyncSession, sql: str) -> None:
    """Run a statement past SQLAlchemy, and let its error pass."""
    connection = await (await session.connection()).get_raw_connection()
    with contextlib.suppress(asyncpg.PostgresError):
        await connection.driver_connection.execute(sql)  # type: ignore[union-attr]


async def test_an_error_swallowed_on_the_drivers_own_connection_is_not_handled(trial: Trial) -> None:
    """Also what failed past SQLAlchemy leaves a transaction that cannot commit: such a message is never acked."""

    async def careless(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        await through_the_driver(session, "SELECT 1 / 0")

    outcome = await trial.once(careless)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, StatementSwallowed)
    assert await trial.committed() == (0, 0)


async def test_work_on_the_drivers_own_connection_commits_with_the_rest(trial: Trial) -> None:
    """A handler may use asyncpg; an error that a savepoint has healed does no harm."""

    async def careful(session: AsyncSession, message: Message) -> None:
        await effect(session, message)
        await through_the_driver(session, "SAVEPOINT mine")
        await through_the_driver(session, "SELECT 1 / 0")
        await through_the_driver(session, "ROLLBACK TO mine")

    assert await trial.once(careful) == Handled()
    assert await trial.committed() == (1, 1)


async def test_an_error_at_commit_is_the_handlers(trial: Trial) -> None:
    """A deferred constraint that breaks at our commit fails the attempt as an error in the handler would."""

    async def defer(session: AsyncSession, message: Message) -> None:
        await session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        await session.execute(text("INSERT INTO effect (unit) VALUES (1), (1)"))

    outcome = await trial.handle(defer)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, IntegrityError)
    assert outcome.attempts == 3
    assert await trial.committed() == (0, 0)


async def test_transactions_that_met_are_tried_again_whatever_the_policy(trial: Trial) -> None:
    """A serialisation failure or deadlock spends no attempt, and is retried even where only other errors would be."""
    calls = 0

    async def collide(session: AsyncSession) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            await session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'met' USING ERRCODE = '40001'; END $$"))

    assert await trial.handle(collide, retry=Retry(attempts=3, base=0.001, on=(KeyError,))) == Handled(attempts=1)


@pytest.mark.parametrize("state", ["57P01", "53100", "53200", "25006", "08006"])
async def test_the_state_of_the_database_is_nobodys_fault(trial: Trial, state: str) -> None:
    """Shutting down, disk full, out of memory, read-only after a failover: no attempt is spent."""
    calls = 0

    async def meet(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        calls += 1
        await effect(session, message)
        if calls < 4:
            await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'state' USING ERRCODE = '{state}'; END $$"))

    assert isinstance(await trial.once(meet), Unsettled)
    assert await trial.handle(meet, retry=Retry(attempts=1)) == Handled(attempts=1)
    assert await trial.committed() == (1, 1)


@pytest.mark.parametrize("swallow", [False, True])
async def test_a_connection_that_is_cut_spends_no_attempt(trial: Trial, swallow: bool) -> None:
    """The backend is terminated while the handler runs: its work is gone, it is handled again, with one effect."""
    calls = 0

    async def unlucky(session: AsyncSession, message: Message) -> None:
        nonlocal calls
        calls += 1
        await effect(session, message)
        if calls == 1:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            async with trial.sessions() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            try:
                await session.execute(text("SELECT 1"))
            except DBAPIError as error:
                if not swallow:
                    raise ValueError("wrapped by the handler") from error

    assert await trial.handle(unlucky, retry=Retry(attempts=1)) == Handled(attempts=1)
    assert calls == 2
    assert await trial.committed() == (1, 1)


async def test_a_missing_table_of_ours_is_waited_for(trial: Trial) -> None:
    """If our own statement fails, the message is never to blame."""
    async with trial.sessions() as session, session.begin():
        await session.execute(text("ALTER TABLE relmsg.inbox_message RENAME TO away"))
    assert isinstance(await trial.once(effect), Unsettled)


async def test_a_database_that_swallows_packets_is_away(
    database_url: str, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is refused and nothing answers, our statements have a deadline, and no attempt is spent."""
    monkeypatch.setattr("relmsg.inbox.attempt.ANSWER_SECONDS", 0.2)
    async with Proxy.before(database_url) as proxy:
        far = create_async_engine(proxy.through(database_url))
        through = Trial(async_sessionmaker(far))
        assert isinstance(await through.once(effect, "1"), Handled)
        proxy.blackhole()
        outcome = await through.once(effect, "2", timeout=0.2)
        assert isinstance(outcome, Unsettled)
        assert "has not answered for 0.4 s" in str(outcome.cause)
        proxy.heal()
        proxy.reset()
        assert await through.handle(effect, "2", retry=Retry(attempts=1)) == Handled(attempts=1)
        await far.dispose()
    assert await trial.committed() == (2, 2)


async def test_ids_are_remembered_as_they_came(trial: Trial) -> None:
    """Ids are text of anyone's making: long, with quotes, in any script."""
    for message_id in ("x" * 255, "'; DROP TABLE effect; --", "日本語 🐘", " 1", "1"):
        assert isinstance(await trial.handle(effect, message_id), Handled)
    assert await trial.committed() == (5, 5)


async def test_a_start_counts_only_if_nobody_lived_to_see_its_end(trial: Trial) -> None:
    """A start is on record while the attempt runs; any end takes it off, and only a dead process leaves it."""
    starts, identity = Starts(trial.sessions, trial.store), Identity("c", "s", "1")
    seen: list[object] = []

    async def attempt(outcome: Outcome) -> Outcome:
        seen.append(await starts.unfinished(identity))
        return outcome

    assert await starts.unfinished(identity) == 1
    for outcome in (Failed(ValueError(), "handler_failed"), Unsettled(OSError())):
        assert await starts.counted(identity, lambda outcome=outcome: attempt(outcome)) == outcome  # type: ignore[misc]
        assert await starts.unfinished(identity) == 1
    for _ in range(2):  # two processes that died: nobody took these back
        async with trial.sessions() as session, session.begin():
            await trial.store.start(session, identity)
    await starts.counted(identity, lambda: attempt(Unsettled(OSError())))
    assert seen == [2, 2, 4]
    assert await starts.unfinished(identity) == 3
    await starts.forget(identity)
    assert await starts.unfinished(identity) == 1


async def test_a_start_that_could_not_be_taken_back_stands_for_the_next(trial: Trial, database_url: str) -> None:
    """An outage in the middle of an attempt cannot add up to strikes, however often the attempt is made again."""
    starts, identity = Starts(trial.sessions, trial.store), Identity("c", "s", "1")

    async def outage() -> Outcome:
        async with trial.sessions() as session, session.begin():
            await session.execute(text("ALTER TABLE relmsg.inbox_attempt RENAME TO away"))
        return Unsettled(OSError())

    for _ in range(3):
        await starts.counted(identity, outage)
        async with trial.sessions() as session, session.begin():
            await session.execute(text("ALTER TABLE relmsg.away RENAME TO inbox_attempt"))
    assert await starts.unfinished(identity) == 2


async def test_the_effect_and_the_end_of_its_starts_commit_together(trial: Trial) -> None:
    """When a message is handled, or found to be a duplicate, its starts are forgotten in the same transaction."""
    starts, identity = Starts(trial.sessions, trial.store), Identity("c", "s", "1")
    task = replace(trial.task(effect), counted=True)
    for expected in (Handled(), Duplicate()):
        assert await starts.counted(identity, lambda: trial.attempts.once(task)) == expected
        assert await starts.unfinished(identity) == 1


async def test_sys_exit_in_a_handler_is_a_failure_and_not_the_end(trial: Trial) -> None:
    """A library that calls sys.exit() fails its message, once; the worker lives on."""

    async def leave(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect VALUES ('never', 1)"))
        raise SystemExit(3)

    outcome = await trial.handle(leave, "1", retry=Retry(attempts=3))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, SystemExit)
    assert (outcome.reason, outcome.attempts) == ("handler_failed", 1)
    assert await trial.committed() == (0, 0)
