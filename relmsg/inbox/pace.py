"""How many messages the next group of a handler may hold: bounded by the handler's time, and by its luck."""

from __future__ import annotations

from relmsg.inbox.call import Took

BUDGET_SECONDS = 0.25
WORTH_IT = 5.0  # a handler that takes so many times what a group would save gains little from one
MEMORY = 0.25  # the weight of the newest unit in the running averages
FIRST_PENALTY = 32
LAST_PENALTY = 4096


class Pace:
    """Grows by doubling from one message, as long as all goes well and the handler is quick.

    In time: what a group saves is our own share of a transaction, the inbox row and the commit. A handler that takes
    more than five times as long, because it waits for another service, runs its messages singly, as many side by side
    as there is concurrency. The two are compared and not held against a number of milliseconds: on a machine that is
    busy both take longer, and that is when groups are needed. Besides, a group holds no more than a quarter of a second
    of work. A handler of lists (``timed=False``) is made for long calls, and not bounded so.

    In luck: a group that failed has been in vain. The next one has a quarter of its messages, and no group grows before
    ``penalty`` messages have gone well. That number doubles with each failure, from 32 up to 4096, and halves each time
    the full size is reached. So messages that fail often, or rows over which groups deadlock, are handled nearly as if
    there were no groups, and one bad message in a thousand costs next to nothing.
    """

    __slots__ = ("_each", "_held", "_limit", "_most", "_ours", "_penalty", "_timed", "size")

    def __init__(self, most: int, *, timed: bool = True) -> None:
        self.size = 1
        self._most = most
        self._timed = timed
        self._each = self._ours = 0.0
        self._limit = 1
        self._held = 0
        self._penalty = FIRST_PENALTY // 2

    def went_well(self, count: int, took: Took | None) -> None:
        """So many messages came to an end together; None where their handler did not run."""
        if took is not None:
            weight = MEMORY if self._ours else 1.0
            self._each += weight * (took.handlers / count - self._each)
            self._ours += weight * (took.ours - self._ours)
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
        if not self._timed or not self._each:  # not measured: so far there were duplicates only
            return self._limit
        if self._each > WORTH_IT * self._ours:
            return 1
        return min(self._limit, max(1, int(BUDGET_SECONDS / self._each)))
