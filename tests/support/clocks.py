"""Clocks whose time passes as a test says."""

from __future__ import annotations

import asyncio


class SteppedClock:
    """Time passes by sleeping, and by setting ``now``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)
