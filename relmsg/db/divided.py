"""Writes many rows by one statement, and where the server refuses one of them, the others all the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from relmsg.db.failures import is_refusal
from relmsg.errors import DatabaseAway

MOST_REFUSED = 8

T = TypeVar("T", bound=Hashable)


async def divided(
    items: Iterable[T], write: Callable[[Sequence[T]], Awaitable[object]], written: Callable[[Sequence[T]], None]
) -> dict[T, DatabaseAway]:
    """Write these items by one statement; if that is refused, by halves, down to those that are refused alone.

    ``written`` is called with the items of each statement that passed. The refused come back, each with its error.
    Where the first MOST_REFUSED are all refused the rest counts as refused too, untried.

    :raises DatabaseAway: the server is away, or another transaction was in the way: it tells nothing of an item.
    """
    refused: dict[T, DatabaseAway] = {}
    parts, passed = [list(items)], False
    while parts:
        part = parts.pop()
        try:
            await write(part)
        except DatabaseAway as error:
            if not is_refusal(error):
                raise
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
                continue
            refused[part[0]] = error
            if not passed and len(refused) == MOST_REFUSED:
                return refused | {each: error for rest in parts for each in rest}
        else:
            passed = True
            written(part)
    return refused
