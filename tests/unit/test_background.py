"""A task in the background that ends by itself is noticed, and begins again."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from relmsg.runtime.background import Background
from relmsg.testing import eventually


class Panic(BaseException):
    """As a Rust extension raises it."""


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def returns() -> None:
    return


@pytest.mark.parametrize(
    "end", [raises(RuntimeError("broken")), raises(Panic()), raises(GeneratorExit()), raises(SystemExit(1)), returns]
)
async def test_what_ends_by_itself_begins_again_and_is_told(
    end: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of any kind and a plain return are logged once each, and the work is begun again."""
    began = 0

    async def work() -> None:
        nonlocal began
        began += 1
        if began <= 2:
            end()
            return
        await asyncio.Event().wait()

    background = Background("the work", work, chance=lambda: 0.0)
    background.start()

    def begun_three_times() -> None:
        assert began == 3

    await eventually(begun_three_times)
    assert background.is_running
    await background.stop()
    assert [record.levelno for record in caplog.records if "the work" in record.getMessage()] == [logging.ERROR] * 2


async def test_who_cancels_all_tasks_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    """A cancellation by somebody else is told, and the work begins again; its owner's ends it."""
    began, ended = 0, 0

    async def work() -> None:
        nonlocal began, ended
        began += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    background = Background("the work", work, chance=lambda: 0.0)
    background.start()
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()

    def begun_again() -> None:
        assert began == 2

    await eventually(begun_again)
    await background.stop()
    assert (began, ended) == (2, 2)
    assert not background.is_running
    assert "somebody has cancelled" in caplog.text


async def test_it_stops_also_while_it_waits_to_begin_again() -> None:
    """Nothing begins after ``stop``."""
    began = 0

    async def work() -> None:
        nonlocal began
        began += 1

    background = Background("the work", work, chance=lambda: 1.0)
    background.start()
    await asyncio.sleep(0.01)
    await background.stop()
    await asyncio.sleep(0.2)
    assert began == 1
