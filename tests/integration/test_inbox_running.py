"""An inbox inside an application: it starts with a block, ends with it, and does not end in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Inbox, Message
from relmsg.broker.subscriber import QueueMissing
from relmsg.errors import BrokerAway, DatabaseAway, InboxEnded, UsageError
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Proxy

Sessions = async_sessionmaker[AsyncSession]


def billing(sessions: Sessions, kind: type[Inbox] = Inbox) -> tuple[Inbox, list[str]]:
    """An inbox, and the types it has handled."""
    handled: list[str] = []
    inbox = kind("billing", sessions)

    @inbox.handler("*", queue="orders")
    async def handle(message: Message) -> None:
        await asyncio.sleep(0.05)
        handled.append(str(message.type))

    return inbox, handled


class Ending(Inbox):
    """Consumes nothing, and ends when it is told to, by an error or without one."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(  # type: ignore[override]
        self, amqp_url: str, stop: asyncio.Event, *, started: Callable[[], None], **_: Any
    ) -> None:
        started()
        await asyncio.wait({self.end, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if self.end.done():
            self.end.result()


async def test_in_the_block_messages_are_handled_and_leaving_it_drains(
    sessions: Sessions, broker: Broker, amqp_url: str
) -> None:
    """The queues are consumed when the block begins, and what runs when it ends is finished first."""
    await broker.queue("orders")
    inbox, handled = billing(sessions)
    async with inbox.running(amqp_url) as entered:
        assert entered is inbox
        assert inbox.ready() is None
        await broker.publish(b"{}", routing_key="orders", message_type="a", message_id="1")
        await eventually(lambda: _in_flight(inbox))
    assert handled == ["a"]
    assert await broker.count("orders") == 0
    assert (inbox.live(), inbox.ready()) == (None, "not running")


async def _in_flight(inbox: Inbox) -> None:
    assert inbox.metrics.registry.get_sample_value("relmsg_consumer_in_flight", {"queue": "orders"})


async def test_a_missing_queue_is_raised_and_logged_at_the_start(
    sessions: Sessions, amqp_url: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that could not consume is not entered, also where services may be waited for."""
    inbox, _ = billing(sessions)
    for wait in (False, True):
        with pytest.raises(QueueMissing, match="orders"):
            async with inbox.running(amqp_url, wait_for_services=wait):
                pytest.fail("entered")
        assert "orders" in str(inbox.live())
    assert [record.levelno for record in caplog.records if record.name == "relmsg.inbox.running"] == [logging.ERROR] * 2


@pytest.mark.parametrize("away", [BrokerAway, DatabaseAway])
async def test_a_service_that_is_away_is_waited_for_or_raised(
    database_url: str, broker: Broker, amqp_url: str, away: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a word the start fails; with `wait_for_services` it waits, says so once, and goes on."""
    await broker.queue("orders")
    caplog.set_level(logging.INFO)
    service = amqp_url if away is BrokerAway else database_url
    async with Proxy.before(service) as proxy:
        database = database_url if away is BrokerAway else proxy.through(database_url)
        url = proxy.through(amqp_url) if away is BrokerAway else amqp_url
        engine = create_async_engine(database)
        inbox, handled = billing(async_sessionmaker(engine))
        await proxy.refuse()
        with pytest.raises(away):
            await inbox.running(url).__aenter__()
        with pytest.raises(away):
            await inbox.running(url, wait_for_services=timedelta(seconds=0.3)).__aenter__()

        caplog.clear()
        inside, leave = asyncio.Event(), asyncio.Event()

        async def application() -> None:
            async with inbox.running(url, wait_for_services=True):
                inside.set()
                await leave.wait()

        running = asyncio.create_task(application())
        await eventually(lambda: _says(inbox, "waits for the services"))
        assert inbox.live() is None
        await proxy.accept()
        await asyncio.wait_for(inside.wait(), 20)
        assert inbox.ready() is None
        told = [record.getMessage() for record in caplog.records if record.name == "relmsg.inbox.running"]
        assert len(told) == 2, told
        assert "waits for the services" in told[0]
        assert "the services answer after" in told[1]
        await broker.publish(b"{}", routing_key="orders", message_type="a", message_id="1")
        await eventually(lambda: _handled(handled))
        leave.set()
        await running
        await engine.dispose()


async def _says(inbox: Inbox, text: str) -> None:
    assert text in str(inbox.ready())


async def _handled(handled: list[str]) -> None:
    assert handled


@pytest.mark.parametrize("error", [RuntimeError("a fault"), QueueMissing("gone"), None])
async def test_an_inbox_that_ends_by_itself_ends_the_block(
    sessions: Sessions, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever works in the block is interrupted and gets the reason, and the log and the probes have it."""
    inbox, _ = billing(sessions, Ending)
    assert isinstance(inbox, Ending)

    async def application() -> None:
        async with inbox.running("amqp://h"):
            inbox.end.set_exception(error) if error else inbox.end.set_result(None)
            await asyncio.wait_for(asyncio.Event().wait(), 20)

    with pytest.raises(type(error or InboxEnded()), match=str(error or "without being asked")):
        await application()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert inbox.live()
    assert inbox.ready() == inbox.live()
    assert caplog.records[-1].levelno == logging.CRITICAL


async def test_an_error_of_the_block_is_the_blocks(sessions: Sessions, broker: Broker, amqp_url: str) -> None:
    """What the application raises comes out unchanged, after the inbox has stopped."""
    await broker.queue("orders")
    inbox, _ = billing(sessions)
    with pytest.raises(KeyError, match="mine"):
        async with inbox.running(amqp_url):
            raise KeyError("mine")
    assert await broker.consumers("orders") == 0


async def test_a_cancelled_block_is_cancelled_and_has_drained(
    sessions: Sessions, broker: Broker, amqp_url: str
) -> None:
    """Whoever cancels the application's task gets a cancelled task, and no consumer stays behind."""
    await broker.queue("orders")
    inbox, _ = billing(sessions)
    inside = asyncio.Event()

    async def application() -> None:
        async with inbox.running(amqp_url):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(application())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await broker.consumers("orders") == 0


async def test_a_cancelled_wait_for_services_leaves_nothing_behind(sessions: Sessions) -> None:
    """An application that is stopped while it waits at its start stops."""
    inbox, _ = billing(sessions)
    task = asyncio.create_task(inbox.running("amqp://127.0.0.1:1", wait_for_services=True).__aenter__())
    await eventually(lambda: _says(inbox, "waits"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each for each in asyncio.all_tasks() if each is not asyncio.current_task()] == []


@pytest.mark.parametrize("wrong", ["yes", -1, None, float("nan")])
async def test_the_wait_for_services_is_a_time_or_a_choice(sessions: Sessions, wrong: Any) -> None:
    """What is neither a choice nor a time is refused by name."""
    with pytest.raises(UsageError, match="wait_for_services"):
        billing(sessions)[0].running("amqp://h", wait_for_services=wrong)


async def test_a_run_that_is_cancelled_leaves_the_callers_stop_alone(
    sessions: Sessions, broker: Broker, amqp_url: str
) -> None:
    """The stop event may belong to others too: run waits for it, and never sets it."""
    await broker.queue("orders")
    inbox, _ = billing(sessions)
    stop, started = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(inbox.run(amqp_url, stop, started=started.set))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not stop.is_set()
    assert await broker.consumers("orders") == 0


async def test_two_runs_at_once_are_refused(sessions: Sessions, broker: Broker, amqp_url: str) -> None:
    """The second of two runs that begin together is told that there is one."""
    await broker.queue("orders")
    inbox, _ = billing(sessions)
    started = asyncio.Event()
    runs = [asyncio.create_task(inbox.run(amqp_url, started=started.set)) for _ in range(2)]
    await started.wait()
    refused = [run for run in runs if run.done()]
    assert len(refused) == 1
    with pytest.raises(UsageError, match="running already"):
        await refused[0]
    for run in runs:
        run.cancel()
    await asyncio.wait(runs)


async def test_sessions_that_commit_each_statement_by_themselves_are_refused(
    engine: AsyncEngine, broker: Broker, amqp_url: str
) -> None:
    """In AUTOCOMMIT a failed message would be a duplicate at the next try, and lost: the inbox does not start."""
    await broker.queue("orders")
    automatic = engine.execution_options(isolation_level="AUTOCOMMIT")
    inbox, _ = billing(async_sessionmaker(automatic))
    with pytest.raises(UsageError, match="AUTOCOMMIT"):
        await inbox.run(amqp_url)
    by_default = create_async_engine(engine.url, isolation_level="AUTOCOMMIT")
    inbox, _ = billing(async_sessionmaker(by_default))
    with pytest.raises(UsageError, match="AUTOCOMMIT"):
        async with inbox.running(amqp_url, wait_for_services=True):
            pytest.fail("it must not begin")
    await by_default.dispose()


async def test_sessions_without_postgresql_are_refused(broker: Broker, amqp_url: str) -> None:
    """Sessions without a database, or with another one than PostgreSQL, are told so at the start."""
    await broker.queue("orders")
    inbox, _ = billing(async_sessionmaker())
    with pytest.raises(UsageError, match="no database"):
        await inbox.run(amqp_url)
    lite = create_async_engine("sqlite+aiosqlite://")
    inbox, _ = billing(async_sessionmaker(lite))
    with pytest.raises(UsageError, match="sqlite"):
        await inbox.run(amqp_url)
    await lite.dispose()


async def test_sessions_that_get_their_engine_later_are_taken(
    engine: AsyncEngine, broker: Broker, amqp_url: str
) -> None:
    """An application may make its sessions at import, and bind them at its start."""
    await broker.queue("orders")
    sessions = async_sessionmaker[AsyncSession]()
    inbox, handled = billing(sessions)
    sessions.configure(bind=engine)
    async with inbox.running(amqp_url):
        await broker.publish(b"{}", routing_key="orders", message_type="a", message_id="1")
        await eventually(lambda: _is_handled(handled))


def _is_handled(handled: list[str]) -> None:
    assert handled == ["a"]


async def test_a_handler_may_have_a_timeout_of_weeks(sessions: Sessions, broker: Broker, amqp_url: str) -> None:
    """What the server is told of a handler's time is within what it takes."""
    await broker.queue("orders")
    inbox, handled = Inbox("billing", sessions), list[str]()

    @inbox.handler("*", queue="orders", timeout=timedelta(days=30))
    async def handle(message: Message) -> None:
        handled.append(str(message.type))

    async with inbox.running(amqp_url):
        await broker.publish(b"{}", routing_key="orders", message_type="a", message_id="1")
        await eventually(lambda: _is_handled(handled))
    assert await broker.count("orders") == 0
