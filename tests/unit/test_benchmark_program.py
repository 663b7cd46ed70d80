"""The protocol between the benchmark suite and a contender."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from tests.benchmarks.cpu import tree_seconds
from tests.benchmarks.measure import failed_of_ours, measure
from tests.benchmarks.model import CheckFailed, Comparison, Contender, Cpu, Sample
from tests.benchmarks.program import Program

SPEAKS = """
from tests.benchmarks.contenders.said import when_told
import asyncio, os, sys
async def work():
    print("what it prints here is not its result", file=sys.stderr)
    return {"seen": float(os.environ["TOLD"])}
asyncio.run(when_told(work))
"""


def program(code: str) -> Program:
    return Program([sys.executable, "-c", code], {"TOLD": "7"})


async def test_a_contender_says_ready_goes_when_told_and_says_what_it_measured() -> None:
    """Its result has the seconds and its own figures; it stays, so that its CPU time can be read."""
    async with program(SPEAKS) as contender:
        await contender.ready()
        await contender.go()
        result = await contender.result()
        assert tree_seconds([contender.pid]) > 0
        assert not contender.ended
    assert result["seen"] == 7.0
    assert 0 < result["seconds"] < 60
    assert contender.ended


async def test_a_contender_that_ends_is_a_failure_with_its_last_words() -> None:
    """The error shows what it wrote to stderr."""
    async with program("import sys; sys.exit('no broker here')") as contender:
        with pytest.raises(CheckFailed, match="no broker here"):
            await contender.ready()


async def test_a_contender_that_says_something_else_is_not_ready() -> None:
    """Only the word itself counts."""
    async with program("print('Ready?', flush=True); input()") as contender:
        with pytest.raises(CheckFailed, match=r"said 'Ready\?' instead of ready"):
            await contender.ready()


async def test_the_cpu_of_a_process_that_has_ended_is_that_of_its_parent() -> None:
    """As with PostgreSQL's backends: what a child used is not lost when it is reaped."""
    code = (
        "import subprocess, sys; print('before', flush=True); input();"
        "subprocess.run([sys.executable, '-c', 'x = sum(i * i for i in range(6_000_000))'], check=True);"
        "print('after', flush=True); input()"
    )
    async with program(code) as contender:
        assert await contender.line(30) == "before"
        used = tree_seconds([contender.pid])
        await contender.go()
        assert await contender.line(60) == "after"
        assert tree_seconds([contender.pid]) - used > 0.1


async def test_a_run_is_wrong_when_the_queue_holds_more_or_less_than_was_sent(monkeypatch) -> None:
    """More is a duplicate, less is a loss; both fail the run."""
    from tests.benchmarks import bench

    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.1)

    async def holding(depth: int, expected: int) -> None:
        async def found(_: str) -> int:
            return depth

        await bench.Bench.check_depth(SimpleNamespace(depth=found), "queue", expected)

    await holding(5, 5)
    with pytest.raises(CheckFailed, match="duplicates"):
        await holding(6, 5)
    with pytest.raises(CheckFailed, match="holds 4 messages, 5 were sent"):
        await holding(4, 5)


async def test_the_others_go_on_when_a_contender_fails(capsys) -> None:
    """One that fails is not run again; its reason is one line: what happened, and what it said last."""

    async def works(_: object, messages: int) -> Sample:
        return Sample(messages, 1.0, Cpu(1.0, 1.0, 1.0))

    async def fails(_: object, __: int) -> Sample:
        async with program("import a_peer_that_is_not_installed") as contender:
            await contender.ready()
        raise AssertionError

    comparison = Comparison(
        "relay", (Contender("peer", fails, 10, 1, peer=True), Contender("ours", works, 10, 1)), (), repetitions=2
    )
    measured = await measure(SimpleNamespace(quick=False), comparison)
    assert len(measured.samples["ours"]) == 2
    assert measured.failures["peer"].endswith("No module named 'a_peer_that_is_not_installed'")
    assert "\n" not in measured.failures["peer"]
    assert failed_of_ours([comparison], {"relay": measured}) == []
    assert capsys.readouterr().err.count("FAILED") == 1


async def test_a_failure_of_ours_is_the_suites(capsys) -> None:
    """The same failure, of a contender that is no peer, ends the suite with an error."""

    async def fails(_: object, __: int) -> Sample:
        raise CheckFailed("there are duplicates")

    comparison = Comparison("relay", (Contender("ours", fails, 10, 1),), ())
    measured = await measure(SimpleNamespace(quick=True), comparison)
    assert failed_of_ours([comparison], {"relay": measured}) == ["relay: ours: there are duplicates"]
