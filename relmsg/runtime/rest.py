"""How long repeated work rests, so that it takes no more than its share of the time."""

from __future__ import annotations


def rest_after(took: float, *, share: float, most: float) -> float:
    """The seconds to rest after a piece of work that took so many seconds, and is to take ``share`` of the time.

    ``most`` bounds it. Work that takes longer than the share allows then has mostly waited, for a lock, a database that
    was away or a machine that stood still: that says nothing of what the next piece costs.
    """
    return min(most, took * (1 / share - 1))
