"""What a coordinator says of itself when nothing moves, and that a task of its own which ends is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from relmsg.clock import SystemClock
from relmsg.half.coordinator import Coordinator
from relmsg.half.protocol import COORDINATOR
from relmsg.half.store import HalfStore
from relmsg.settings import Settings
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Proxy
from tests.support.running import running_inside


class Ahead(SystemClock):
    """A clock that a test can put forward."""

    seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds


def says(coordinator: Coordinator, wanted: str | None) -> Callable[[], None]:
    def check() -> None:
        told = coordinator.live()
        assert told is None if wanted is None else wanted in (told or "")

    return check


async def prepare(broker: Broker) -> None:
    said = {"relmsg-half": "prepare", "relmsg-half-group": "g", "relmsg-half-exchange": ""}
    said["relmsg-half-routing-key"] = "q"
    await broker.publish(b"x", routing_key=COORDINATOR, headers=said, message_id=str(uuid4()), message_type="t")


def coordinator_of(database_url: str, amqp_url: str, clock: SystemClock) -> Coordinator:
    return Coordinator(Settings(database_url=database_url, amqp_url=amqp_url, probes=""), clock=clock)


async def test_a_coordinator_in_which_nothing_moves_for_a_minute_is_not_live(
    broker: Broker, amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery that is here and not settled for a minute, with no service away, makes it not live until it is."""
    clock, over, begun = Ahead(), asyncio.Event(), asyncio.Event()
    store = HalfStore.prepare

    async def stuck(self: HalfStore, half: Any) -> Any:
        begun.set()
        await over.wait()
        return await store(self, half)

    monkeypatch.setattr(HalfStore, "prepare", stuck)
    async with running_inside(coordinator_of(database_url, amqp_url, clock)) as coordinator:
        clock.seconds += 3600
        await eventually(says(coordinator, None))  # nothing is here: nothing has to move
        await prepare(broker)
        await asyncio.wait_for(begun.wait(), 20)
        clock.seconds += 50
        await eventually(says(coordinator, None))
        clock.seconds += 20
        await eventually(says(coordinator, "none was settled for"))
        over.set()
        await eventually(says(coordinator, None))


async def test_a_coordinator_that_waits_for_its_database_is_live(
    broker: Broker, amqp_url: str, database_url: str
) -> None:
    """A restart would not help while the database is away, however long that lasts: ready tells it, live does not."""
    clock = Ahead()
    async with (
        Proxy.before(database_url) as proxy,
        running_inside(coordinator_of(proxy.through(database_url), amqp_url, clock)) as coordinator,
    ):
        await proxy.refuse()
        proxy.reset()
        await prepare(broker)

        def is_away() -> None:
            assert "PostgreSQL" in (coordinator.ready() or "")
            assert coordinator._intake is not None
            assert coordinator._intake._here == 1

        await eventually(is_away)
        clock.seconds += 600
        await eventually(says(coordinator, None))
        await proxy.accept()

        def is_ready() -> None:
            assert coordinator.ready() is None

        await eventually(is_ready)


async def test_a_line_of_half_messages_that_ends_ends_the_coordinator(
    broker: Broker, amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cancels the task that takes half messages does not leave a coordinator behind that takes none."""

    async def cancelled(self: HalfStore, half: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    monkeypatch.setattr(HalfStore, "prepare", cancelled)
    coordinator = coordinator_of(database_url, amqp_url, SystemClock())
    running = asyncio.create_task(coordinator.run(asyncio.Event()))
    await asyncio.wait_for(coordinator.started.wait(), 20)
    await prepare(broker)
    with pytest.raises(RuntimeError, match="somebody has cancelled"):
        await asyncio.wait_for(running, 30)
