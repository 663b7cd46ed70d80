"""What a running relay tells Prometheus."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from tests.benchmarks.model import CheckFailed
from tests.benchmarks.program import READY_SECONDS, Program

LOOK_SECONDS = 0.02
OBSERVE_SECONDS = 60.0


class Metrics:
    """The metrics of one relay, over HTTP."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    @classmethod
    async def of(cls, relay: Program) -> Self:
        """Wait until the relay says that it works, and on which port it can be asked."""
        line = await relay.line(READY_SECONDS)
        if (found := re.search(r"probes on port (\d+)", line)) is None:
            raise CheckFailed(f"the relay said {line!r}, and no port")
        return cls(int(found[1]))

    async def value(self, name: str) -> float:
        """The sum over all labels of one sample, such as ``relmsg_relay_held_destinations``."""
        return (await asyncio.to_thread(self._read))[name]

    async def single_observations(self, histogram: str, wanted: int) -> list[float]:
        """Seconds of single observations: looked at so often that mostly one at a time has been added.

        The mean would hide what a rare long one (a full sweep) does to the others.
        """
        deadline = time.monotonic() + OBSERVE_SECONDS
        found: list[float] = []
        before = await asyncio.to_thread(self._read)
        while len(found) < wanted:
            if time.monotonic() > deadline:
                raise CheckFailed(f"{histogram}: {len(found)} observations in {OBSERVE_SECONDS:g} s")
            await asyncio.sleep(LOOK_SECONDS)
            now = await asyncio.to_thread(self._read)
            added = now[f"{histogram}_count"] - before[f"{histogram}_count"]
            if added == 1:
                found.append(now[f"{histogram}_sum"] - before[f"{histogram}_sum"])
            before = now
        return found

    def _read(self) -> dict[str, float]:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            text = answer.read().decode()
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values
