"""The time that a handler has, where one timer serves many handlers."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from relmsg.inbox.deadline import Deadline

SECONDS = 0.05


async def ended(deadline: Deadline, work: asyncio.Future[None]) -> tuple[bool, bool]:
    """Whether the deadline stopped the work, and whether it came out as a cancellation."""
    deadline.begin()
    cancelled = False
    try:
        await work
    except asyncio.CancelledError:
        cancelled = True
    return deadline.end(), cancelled


def never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_work_that_takes_too_long_is_stopped_and_its_task_is_as_before() -> None:
    """The cancellation belongs to the deadline: the task that goes on is not a cancelled one."""
    with Deadline(SECONDS) as deadline:
        assert await ended(deadline, never()) == (True, True)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_later_handler_has_its_whole_time_though_the_timer_was_set_for_an_earlier_one() -> None:
    """The timer of the first goes off in the turn of the second, and stops it only at its own end."""
    loop = asyncio.get_running_loop()
    with Deadline(SECONDS) as deadline:
        first = loop.create_future()
        loop.call_later(SECONDS * 0.7, first.set_result, None)
        assert await ended(deadline, first) == (False, False)
        began = loop.time()
        assert await ended(deadline, never()) == (True, True)
        assert loop.time() - began >= SECONDS


async def test_between_two_handlers_nothing_is_stopped() -> None:
    """A timer that goes off while no handler runs leaves the task alone, and the next handler is watched again."""
    loop = asyncio.get_running_loop()
    with Deadline(SECONDS) as deadline:
        deadline.begin()
        assert not deadline.end()
        gone_off = loop.create_future()
        loop.call_later(SECONDS * 1.5, gone_off.set_result, None)
        await gone_off
        assert await ended(deadline, never()) == (True, True)


async def test_without_a_limit_there_is_no_timer() -> None:
    """None is no limit."""
    with Deadline(None) as deadline:
        done = never()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        assert await ended(deadline, done) == (False, False)


async def test_somebody_elses_cancellation_stays_theirs() -> None:
    """A task that is cancelled from outside is cancelled, and the deadline says that it was not its doing."""
    said: list[tuple[bool, bool]] = []
    waiting = asyncio.Event()

    async def work() -> None:
        with Deadline(60) as deadline:
            asyncio.get_running_loop().call_soon(waiting.set)
            said.append(await ended(deadline, never()))
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 1

    task = asyncio.create_task(work())
    await waiting.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert said == [(False, True)]


async def test_leaving_takes_the_timer_away() -> None:
    """Nothing is stopped later by a deadline that was left with its timer set."""
    with Deadline(SECONDS) as deadline:
        deadline.begin()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SECONDS * 2):
            await never()
