"""One batch of publishes, and what the broker says of each. Knows nothing of sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from relmsg.broker.answer import reply_code, translate
from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.broker.wire import Publication
from relmsg.errors import RelmsgError
from relmsg.failpoint import reach


class Batch:
    """The messages of one batch and their receipts.

    It ends by itself, whether or not anyone still waits for it: by the last answer, when its line is lost, or at its
    deadline. A message answered twice keeps its first receipt. ``reach`` is told each failpoint on the way.
    """

    def __init__(
        self, publications: Sequence[Publication], ended: Callable[[Batch], None], reach: Callable[[str], None] = reach
    ) -> None:
        self.publications = publications
        self.reach = reach
        self.receipts: list[Receipt | None] = [None] * len(publications)
        self.written = 0
        """How many, from the first on, may have reached the broker."""
        self.unsent_because: RelmsgError | None = None
        """Why there was no channel to send it on."""
        self.has_nacked = False
        """Whether the broker has refused any of it."""
        self._unanswered = len(publications)
        self._returned: dict[int, Returned] = {}
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None
        self._complete = asyncio.Event()

    def acked(self, start: int, stop: int) -> int:
        """The broker has dealt with these positions: what it has not returned before is confirmed. How many are new."""
        return self._answer(start, stop, Confirmed)

    def nacked(self, start: int, stop: int) -> int:
        """The broker has refused these positions. How many are new."""
        self.has_nacked = True
        return self._answer(start, stop, Nacked)

    def returned(self, position: int, reply_code: int, reply_text: str) -> None:
        """No queue took the message. Its receipt is complete with the ack, which RabbitMQ sends after the return."""
        publish = self.publications[position]
        self._returned[position] = Returned(
            publish.message_id, publish.exchange, publish.routing_key, reply_code, reply_text
        )

    def settle(self, position: int, receipt: Receipt) -> None:
        """One message has its receipt."""
        if self.receipts[position] is None:
            if self._unanswered == len(self.publications):
                self.reach("publish.after_first_confirm")
            self.receipts[position] = receipt
            self.has_nacked |= isinstance(receipt, Nacked)
            self._answered(1)

    def give_up(self, cause: BaseException) -> None:
        """Everything unanswered becomes Unknown, or Returned where the broker had said so much."""
        code = reply_code(cause)
        reason = cause if isinstance(cause, TimeoutError | RelmsgError) else translate(cause)
        self._close_out(0, lambda publish: Unknown(publish.message_id, reason, code))

    def not_sent(self, reason: RelmsgError) -> None:
        """There was no channel for any of it: all of it is Unknown, as are the others of its call."""
        self.unsent_because = reason
        self.give_up(reason)

    def leave(self, cause: BaseException) -> None:
        """Nobody waits any more. What is written keeps its id until it is answered: sent again under the same id before
        that, it could be given the verdict of this one (reliability P2)."""
        reason = translate(cause)
        self._close_out(self.written, lambda publish: Unknown(publish.message_id, reason))

    def end_within(self, deadline: float, abort: Callable[[], None]) -> None:
        """After ``deadline`` seconds without an answer cut the connection; the rest is Unknown then."""
        if not self._complete.is_set():
            self._timer = asyncio.get_running_loop().call_later(deadline, self._overdue, deadline, abort)

    async def answered(self) -> list[Receipt]:
        """Wait until each message has its receipt; in the order of the publications."""
        await self._complete.wait()
        self.reach("publish.after_all_confirms")
        return cast("list[Receipt]", self.receipts)

    def _overdue(self, deadline: float, abort: Callable[[], None]) -> None:
        abort()
        self.give_up(TimeoutError(f"no confirm within {deadline:g} s"))

    def _close_out(self, start: int, receipt: Callable[[Publication], Receipt]) -> None:
        for position in range(start, len(self.publications)):
            if self.receipts[position] is None:
                self.receipts[position] = self._returned.get(position) or receipt(self.publications[position])
                self._unanswered -= 1
        self._answered(0)

    def _answer(self, start: int, stop: int, receipt: type[Confirmed | Nacked]) -> int:
        if self._unanswered == len(self.publications):
            self.reach("publish.after_first_confirm")
        receipts, publications, returned = self.receipts, self.publications, self._returned
        new = 0
        for position in range(start, stop):
            if receipts[position] is None:
                message_id = publications[position].message_id
                known = returned.pop(position, None) if returned else None
                receipts[position] = known or receipt(message_id)
                new += 1
        self._answered(new)
        return new

    def _answered(self, count: int) -> None:
        self._unanswered -= count
        if self._unanswered == 0 and not self._complete.is_set():
            self._complete.set()
            if self._timer is not None:
                self._timer.cancel()
            self._ended(self)
