"""The watch for a COMMIT, on a driver that only keeps its query loggers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from relmsg.outbox.commit_watch import CommitWatch


class Driver:
    """The query log of an asyncpg connection."""

    def __init__(self) -> None:
        self.loggers: set[Callable[[object], None]] = set()
        self.add_query_logger = self.loggers.add
        self.remove_query_logger = self.loggers.discard

    def ran(self, query: str, exception: Exception | None = None) -> None:
        for logger in list(self.loggers):
            logger(SimpleNamespace(query=query, exception=exception))


@pytest.mark.parametrize(("error", "calls"), [(None, ["called"]), (ConnectionError(), [])])
def test_a_commit_calls_once_and_only_if_it_went_through(error, calls):
    """The first COMMIT ends the watch, and calls if it was answered without an error; other statements do neither."""
    driver, called = Driver(), []
    CommitWatch(driver, lambda: called.append("called"))
    driver.ran("INSERT INTO t VALUES (1)")
    assert called == []
    driver.ran("COMMIT;", error)
    driver.ran("COMMIT;")
    assert called == calls
    assert not driver.loggers


def test_a_watch_that_is_over_is_gone_without_the_garbage_collector():
    """A watch makes no circle of references: there is one a transaction, the collector would have to find each."""

    class Then:
        def __call__(self) -> None: ...

    driver, then = Driver(), Then()
    gone = weakref.ref(then)
    gc.disable()
    try:
        call_off = CommitWatch(driver, then).call_off
        driver.ran("COMMIT;")
        del then, call_off
        assert gone() is None
    finally:
        gc.enable()
