"""Acks are gathered, and never given for a message that is not finished."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from relmsg.broker.acks import Ack, Acks
from relmsg.testing import eventually


class Broker:
    """What a broker makes of acks: an ack of anything that is not unacked is an error."""

    def __init__(self) -> None:
        self.unacked: set[int] = set()
        self.written: list[Ack] = []

    def write(self, acks: Sequence[Ack]) -> None:
        for ack in acks:
            assert ack.tag in self.unacked, "an ack of an unknown tag closes the channel"
            self.unacked -= {tag for tag in self.unacked if tag <= ack.tag} if ack.multiple else {ack.tag}
            self.written.append(ack)


async def turn() -> None:
    """Let everything run that was due."""
    for _ in range(3):
        await asyncio.sleep(0)


STEPS = st.lists(st.tuples(st.sampled_from(["come", "finish", "turn", "flush"]), st.integers(0, 50)), max_size=120)


@given(STEPS)
def test_only_what_is_finished_is_acked(steps):
    """Whatever the order: no unfinished message is acked, no message twice, and in the end every finished one is."""

    async def run() -> None:
        broker = Broker()
        acks = Acks(broker.write)
        came: list[int] = []
        finished: set[int] = set()
        for what, number in steps:
            if what == "come":
                came.append(len(came) + 1)
                broker.unacked.add(came[-1])
                acks.came(came[-1])
            elif what == "finish" and came:
                tag = came[number % len(came)]
                assert acks.finish(tag) is (tag not in finished)
                finished.add(tag)
            elif what == "turn":
                await turn()
            elif what == "flush":
                acks.flush()
            assert set(came) - broker.unacked <= finished
        acks.flush()
        assert set(came) - broker.unacked == finished

    asyncio.run(run())


async def test_a_turn_of_the_loop_makes_one_ack():
    """A hundred messages that one turn has finished, in any order, are acked by one frame."""
    broker = Broker()
    acks = Acks(broker.write)
    broker.unacked = set(range(1, 101))
    for tag in range(1, 101):
        acks.came(tag)
    for tag in range(100, 0, -1):
        acks.finish(tag)
    assert broker.written == []
    await turn()
    assert broker.written == [Ack(100, multiple=True)]


async def test_few_of_many_wait_for_more():
    """While the broker has much to hear of, a few finished messages are acked by one frame a little later; an eighth of
    them is acked at once."""
    broker = Broker()
    acks = Acks(broker.write)
    broker.unacked = set(range(1, 101))
    for tag in range(1, 101):
        acks.came(tag)
    for tag in (1, 2, 3):
        acks.finish(tag)
        await turn()
    assert broker.written == []

    def one() -> None:
        assert broker.written == [Ack(3, multiple=True)]

    await eventually(one)
    for tag in range(4, 17):
        acks.finish(tag)
    await turn()
    assert broker.written[1:] == [Ack(16, multiple=True)]


async def test_the_only_message_is_acked_at_once():
    """Where nothing else is open, or all of it is finished, no ack waits: a prefetch of one would be slow."""
    broker = Broker()
    acks = Acks(broker.write)
    broker.unacked = {1}
    acks.came(1)
    acks.finish(1)
    await turn()
    assert broker.written == [Ack(1, multiple=True)]


async def test_what_stands_behind_an_unfinished_message_is_acked_alone():
    """A slow message holds back no acks for long: those behind it are given one by one, and no later ack covers it."""
    broker = Broker()
    acks = Acks(broker.write)
    broker.unacked = {1, 2, 3, 4}
    for tag in (1, 2, 3, 4):
        acks.came(tag)
    for tag in (2, 4):
        acks.finish(tag)

    def both() -> None:
        assert broker.unacked == {1, 3}

    await eventually(both)
    assert broker.written == [Ack(2, multiple=False), Ack(4, multiple=False)]
    acks.finish(3)
    acks.finish(1)
    await turn()
    assert broker.unacked == set()
    assert broker.written[-1] == Ack(3, multiple=True)
