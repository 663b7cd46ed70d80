"""Bounds the wait for a statement of ours."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from relmsg.errors import DatabaseAway


class _Answering:
    """Written out: as a generator it would cost each message more than the clock that it sets."""

    __slots__ = ("_limit", "_within")

    def __init__(self, within: float) -> None:
        self._within = within
        self._limit = asyncio.timeout(within)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise DatabaseAway(f"PostgreSQL has not answered for {self._within:g} s") from late


def answering(within: float) -> AbstractAsyncContextManager[None]:
    """Bound the wait for statements of ours: a network that swallows packets never raises anything by itself.

    :raises DatabaseAway: no answer within so many seconds.
    """
    return _Answering(within)
