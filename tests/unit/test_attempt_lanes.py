"""Slots and rest: what runs beside what, and what may be interrupted."""

import asyncio

import pytest

from relmsg.inbox.rest import Rest
from relmsg.inbox.slots import Slots


async def turns() -> None:
    """Let everything run that can run without anyone's help."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_slots_bound_how_many_run() -> None:
    """No more than count hold a slot at one time."""
    slots, running, most = Slots(3), 0, 0

    async def run() -> None:
        nonlocal running, most
        async with slots.one():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(run() for _ in range(20)))
    assert most == 3


async def test_a_loner_runs_while_nobody_else_does() -> None:
    """alone waits for all that run, keeps later ones out, and two loners do not block each other."""
    slots, running = Slots(3), set[str]()
    together: list[frozenset[str]] = []

    async def run(name: str) -> None:
        async with slots.alone() if name.startswith("loner") else slots.one():
            running.add(name)
            await asyncio.sleep(0)
            together.append(frozenset(running))
            running.discard(name)

    names = ["a", "b", "loner 1", "c", "loner 2", "d", "e", "f", "g"]
    async with asyncio.timeout(5):
        await asyncio.gather(*map(run, names))
    for seen in together:
        assert len(seen) == 1 or not any(name.startswith("loner") for name in seen)
    assert set().union(*together) == set(names)


async def test_a_cancelled_loner_gives_everything_back() -> None:
    """A loner that is cancelled while it waits leaves all slots free."""
    slots = Slots(2)
    async with slots.one():
        loner = asyncio.create_task(slots.alone().__aenter__())
        await turns()
        loner.cancel()
        await asyncio.gather(loner, return_exceptions=True)
    async with asyncio.timeout(5), slots.one(), slots.one():
        pass


async def test_the_end_of_rest_interrupts_waits_and_nothing_else() -> None:
    """Who rests is cancelled, now or when it next wants to rest; who works goes on."""
    rest, work = Rest(), asyncio.Event()
    ended: list[str] = []

    async def resting() -> None:
        with rest():
            await asyncio.Event().wait()

    async def working() -> None:
        await work.wait()
        ended.append("work")
        with rest():
            ended.append("rest")

    sleeper, worker = asyncio.create_task(resting()), asyncio.create_task(working())
    await turns()
    rest.end()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    work.set()
    with pytest.raises(asyncio.CancelledError):
        await worker
    assert ended == ["work"]
