"""Running comparisons: contenders by turns, so that a machine which gets slower or faster does so for all of them."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.model import Comparison, Contender, Sample

DISTURBED = 0.05
RUN_LIMIT_SECONDS = 3600.0  # nothing hangs for ever; each wait inside has a deadline of its own


@dataclass(slots=True)
class Measured:
    """The samples of a comparison by contender, and why a contender has none."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        samples = {name: [sample.as_json() for sample in runs] for name, runs in self.samples.items()}
        return {"samples": samples, "failures": self.failures}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Measured:
        samples = {name: [Sample.from_json(each) for each in runs] for name, runs in given["samples"].items()}
        return cls(samples, given["failures"])


async def measure(bench: Bench, comparison: Comparison) -> Measured:
    """Run every contender ``repetitions`` times, by turns. One that fails is left out from then on, with the reason."""
    measured = Measured()
    for turn in range(1 if bench.quick else comparison.repetitions):
        for contender in comparison.contenders:
            if contender.name not in measured.failures:
                await _run(bench, comparison, contender, turn, measured)
    return measured


def failed_of_ours(comparisons: Sequence[Comparison], results: dict[str, Measured]) -> list[str]:
    """The contenders of ours that failed: then the suite has."""
    return [
        f"{comparison.name}: {contender.name}: {results[comparison.name].failures[contender.name]}"
        for comparison in comparisons
        for contender in comparison.contenders
        if not contender.peer and contender.name in results[comparison.name].failures
    ]


async def _run(bench: Bench, comparison: Comparison, contender: Contender, turn: int, measured: Measured) -> None:
    messages = contender.quick if bench.quick else contender.messages
    began = time.monotonic()
    try:
        async with asyncio.timeout(RUN_LIMIT_SECONDS):
            sample = await contender.run(bench, messages)
    except Exception as error:  # whatever a contender does, the others go on
        measured.failures[contender.name] = _in_short(error)
        measured.samples.pop(contender.name, None)
        _say(f"{comparison.name} · {contender.name}: FAILED: {error}")
        if not contender.peer:
            traceback.print_exc()
        return
    measured.samples.setdefault(contender.name, []).append(sample)
    cpu = sample.cpu
    _say(
        f"{comparison.name} · {contender.name} · {turn + 1}: {sample.figure('rate'):,.0f}/s, us a message: "
        f"{cpu.client:.1f} client, {cpu.broker:.1f} broker, {cpu.postgres:.1f} PostgreSQL"
        + (f", DISTURBED by others ({cpu.elsewhere:.0%} of the machine)" if cpu.elsewhere > DISTURBED else "")
        + "".join(f", {name} {value:.4g}" for name, value in sample.figures.items())
        + f" ({sample.messages:,} messages, {time.monotonic() - began:.1f} s in all)"
    )


def _in_short(error: Exception) -> str:
    """What happened, and the last thing that was said: mostly a program's own error."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return f"{first}: {others[-1]}" if others else first


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
