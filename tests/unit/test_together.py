"""What becomes of the deliveries of a group: which are acked, which come back, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from relmsg.broker.delivery import Delivery
from relmsg.errors import DatabaseAway
from relmsg.inbox.arrival import Arrival, arrived
from relmsg.inbox.attempt import Task
from relmsg.inbox.call import Took
from relmsg.inbox.gate import Gate
from relmsg.inbox.group import DUPLICATE, HANDLED, Committed
from relmsg.inbox.handler import Handler, parameters
from relmsg.inbox.metrics import Metrics
from relmsg.inbox.outcome import Failed, Unsettled
from relmsg.inbox.pace import Pace
from relmsg.inbox.registry import Registry
from relmsg.inbox.slots import Slots
from relmsg.inbox.together import Together
from relmsg.message import Message
from relmsg.retry import Retry

Outcome = Committed | Failed | Unsettled
TOOK = Took(0.001, 0.001)
LABELS = {"consumer": "c", "queue": "q"}


class Channel:
    """Where deliveries come from; remembers what was acked."""

    generation = 1

    def __init__(self) -> None:
        self.is_open = True
        self.acked: list[int] = []

    def finish(self, tag: int) -> bool:
        self.acked.append(tag)
        return True


class Groups:
    """In place of the database: each transaction ends as the test says."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.ends: list[Callable[[], Awaitable[Outcome]]] = []

    def end(self, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self.ends.append(lambda outcome=outcome: asyncio.sleep(0, outcome))  # type: ignore[misc]

    async def once(self, _: Handler, tasks: Sequence[Task]) -> Outcome:
        self.seen.append([str(task.message.id) for task in tasks])
        return await self.ends.pop(0)()


class Trial:
    """A Together on these groups, and deliveries for it."""

    def __init__(self) -> None:
        self.groups, self.metrics, self.slots, self.pace = Groups(), Metrics(), Slots(1), Pace(50, timed=False)
        self.database, self.error_exchange = Gate("database", chance=lambda: 0.0), Gate("errors", chance=lambda: 0.0)
        self.together = Together(
            groups=self.groups,  # type: ignore[arg-type]
            database=self.database,
            error_exchange=self.error_exchange,
            slots=self.slots,
            metrics=self.metrics,
        )
        self.registry = Registry()
        self.registry.add(
            Handler(
                type="t", queue="q", consumer="c", function=_effect, retry=Retry(), timeout=30,
                parameters=parameters(_effect), group=50,
            )
        )  # fmt: skip

    def arrivals(self, channel: Channel, *ids: str, redelivered: bool = False) -> list[Arrival]:
        deliveries = [
            Delivery(Message(id=each, type="t", redelivered=redelivered), "q", channel, tag)
            for tag, each in enumerate(ids, start=1)
        ]
        self.metrics.received("q", len(deliveries))
        return [arrived(each, "c", self.registry, "reject") for each in deliveries]

    def handle(self, arrivals: list[Arrival]) -> Awaitable[list[Arrival]]:
        return self.together.handle(arrivals, self.pace)

    def counted(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"relmsg_consumer_{metric}", labels) or 0

    def settled(self, outcome: str) -> float:
        return self.counted("deliveries_total", **LABELS, outcome=outcome)

    @property
    def in_flight(self) -> float:
        return self.counted("in_flight", queue="q")


async def _effect(message: Message, session: AsyncSession) -> None: ...


@pytest.fixture
async def trial() -> Trial:
    return Trial()


async def turns() -> None:
    """Let everything run that does not wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_only_what_is_committed_is_acked(trial: Trial) -> None:
    """What a group that was closed early left out is not acked and not counted: it comes back, for another group."""
    channel = Channel()
    arrivals = trial.arrivals(channel, "a", "b", "a", "c")
    trial.groups.end(Committed([HANDLED, None, DUPLICATE, None], TOOK))
    back = await trial.handle(arrivals)
    assert back == [arrivals[1], arrivals[3]]
    assert channel.acked == [1, 3]
    assert not any(arrival.alone for arrival in back)
    assert (trial.settled("handled"), trial.settled("duplicate"), trial.in_flight) == (1, 1, 2)


async def test_nothing_of_a_group_that_failed_is_acked(trial: Trial) -> None:
    """All of it comes back in its order, each to be handled alone; the next groups are smaller."""
    channel = Channel()
    arrivals = trial.arrivals(channel, *"abcdefgh")
    for _ in range(3):
        trial.pace.went_well(trial.pace.size, TOOK)
    assert trial.pace.size == 8
    trial.groups.end(Failed(ValueError("no"), "handler_failed"))
    assert await trial.handle(arrivals) == arrivals
    assert channel.acked == []
    assert all(arrival.alone for arrival in arrivals)
    assert trial.pace.size == 2
    assert trial.counted("groups_total", **LABELS, type="t", outcome="rolled_back") == 1
    assert trial.in_flight == 8


async def test_what_is_lost_while_it_waits_is_not_handled(trial: Trial) -> None:
    """C9: messages whose channel is gone when their group begins are left to their redelivery; the others go on."""
    lost, there = Channel(), Channel()
    await trial.slots.take()
    trial.groups.end(Committed([HANDLED], TOOK))
    mixed = asyncio.create_task(trial.handle([*trial.arrivals(lost, "a", "b"), *trial.arrivals(there, "c")]))
    gone = asyncio.create_task(trial.handle(trial.arrivals(lost, "d", "e")))
    await turns()
    lost.is_open = False
    trial.slots.release()
    assert (await mixed, await gone) == ([], [])
    assert trial.groups.seen == [["c"]]
    assert (lost.acked, there.acked) == ([], [1])
    assert (trial.settled("handled"), trial.settled("unsettled"), trial.in_flight) == (1, 4, 0)


async def test_a_group_waits_while_the_database_is_away(trial: Trial) -> None:
    """Nothing is acked and nobody is blamed until the transaction has an end."""
    channel = Channel()
    trial.groups.end(Unsettled(DatabaseAway("gone")), Unsettled(DatabaseAway("gone")), Committed([HANDLED] * 2, TOOK))
    assert await trial.handle(trial.arrivals(channel, "a", "b")) == []
    assert trial.groups.seen == [["a", "b"]] * 3
    assert channel.acked == [1, 2]
    assert trial.counted("groups_total", **LABELS, type="t", outcome="rolled_back") == 0


async def test_no_group_begins_while_failures_cannot_be_kept(trial: Trial) -> None:
    """While the error queue takes no copy a group waits, as single messages do."""
    room = asyncio.Event()

    async def copy() -> bool | Unsettled:
        return True if room.is_set() else Unsettled(DatabaseAway("full"))

    filling = asyncio.create_task(trial.error_exchange.until_settled(copy))
    await turns()
    assert not trial.error_exchange.is_open
    trial.groups.end(Committed([HANDLED, HANDLED], TOOK))
    waiting = asyncio.create_task(trial.handle(trial.arrivals(Channel(), "a", "b")))
    await turns()
    assert trial.groups.seen == []
    room.set()
    assert await filling is True
    assert await waiting == []
    assert trial.groups.seen == [["a", "b"]]


async def test_a_cancelled_group_is_left_unacked(trial: Trial) -> None:
    """The end of a drain leaves all messages of a group to their redelivery, and counts them."""
    channel = Channel()
    trial.groups.ends.append(asyncio.Event().wait)  # type: ignore[arg-type]
    task = asyncio.create_task(trial.handle(trial.arrivals(channel, "a", "b", "c")))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert channel.acked == []
    assert (trial.settled("unsettled"), trial.in_flight) == (3, 0)


async def test_what_must_not_share_a_transaction_is_marked(trial: Trial) -> None:
    """A message that was delivered before, and one that no handler can take, are handled alone."""
    (first,) = trial.arrivals(Channel(), "a")
    (again,) = trial.arrivals(Channel(), "a", redelivered=True)
    (without_id,) = trial.arrivals(Channel(), "")
    assert [first.alone, again.alone, without_id.alone] == [False, True, True]


def test_a_key_is_one_of_its_queue() -> None:
    """The order of a key is that of one queue: the same key of another queue waits for nobody."""
    message = Message(id="a", type="t", ordering_key="k")
    came = [Delivery(message, queue, Channel(), 1) for queue in ("q", "q", "archive")]
    first, second, other = (arrived(each, "c", Registry(), "reject").key for each in came)
    assert first == second != other
    assert first is not None
