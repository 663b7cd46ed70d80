"""The trial that tells whether a consumer's database writes again after a long pause."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from relmsg.inbox.handle.refused import Refusals
from relmsg.inbox.outcome import Unsettled

Trial = Callable[[], Awaitable["Answers | Unsettled"]]


class Answers:
    """The database takes an inbox row."""


def writing(refusals: Refusals, consumer: str) -> Trial:
    """A trial of the database: an inbox row of no message is written, and rolled back."""

    async def write() -> Answers | Unsettled:
        error = await refusals.why_paused(consumer)
        return Answers() if error is None else Unsettled(error)

    return write
