"""How many messages the next group of a handler may hold: bounded by the handler's time, and by its luck."""

from __future__ import annotations

BUDGET_SECONDS = 0.025
SMALLEST_GAIN = 4  # a handler that cannot do so many in the budget gains little from groups
MEMORY = 0.25  # the weight of the newest unit in the running average
FIRST_PENALTY = 32
LAST_PENALTY = 4096


class Pace:
    """Grows by doubling from one message, as long as all goes well and the handler is quick.

    In time: a group holds no more messages than the handler can do in 25 ms, and a handler that cannot do four of them
    runs its messages singly, as many side by side as there is concurrency. A handler of lists (``timed=False``) is made
    for long calls, and not bounded so.

    In luck: a group that failed has been in vain. The next one has a quarter of its messages, and no group grows before
    ``penalty`` messages have gone well. That number doubles with each failure, from 32 up to 4096, and halves each time
    the full size is reached. So messages that fail often, or rows over which groups deadlock, are handled nearly as if
    there were no groups, and one bad message in a thousand costs next to nothing.
    """

    __slots__ = ("_average", "_held", "_limit", "_most", "_penalty", "_timed", "size")

    def __init__(self, most: int, *, timed: bool = True) -> None:
        self.size = 1
        self._most = most
        self._timed = timed
        self._average: float | None = None
        self._limit = 1
        self._held = 0
        self._penalty = FIRST_PENALTY // 2

    def went_well(self, count: int, seconds: float | None) -> None:
        """So many messages came to an end together; None where their handler did not run."""
        if seconds is not None:
            each = seconds / count
            self._average = each if self._average is None else self._average + MEMORY * (each - self._average)
        if self._held > 0:
            self._held -= count
        elif count * 2 > self._limit and self._limit < self._most:
            self._limit = min(self._most, self._limit * 2)
            if self._limit == self._most:
                self._penalty = max(FIRST_PENALTY // 2, self._penalty // 2)
        self.size = self._next()

    def failed(self, count: int) -> None:
        """A group of so many has been rolled back."""
        self._limit = max(1, min(self._limit, count) // 4)
        self._penalty = min(LAST_PENALTY, self._penalty * 2)
        self._held = self._penalty
        self.size = self._next()

    def _next(self) -> int:
        if not self._timed or not self._average:  # not measured: so far there were duplicates only
            return self._limit
        within = int(BUDGET_SECONDS / self._average)
        return 1 if within < SMALLEST_GAIN else min(self._limit, within)
