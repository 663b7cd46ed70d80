"""Acks of one channel: gathered, and never given for a message that is not finished."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

GATHER_SECONDS = 0.01
SHARE = 8  # an eighth of what is open is acked at once: the broker shall not wait for room
ALONE_SECONDS = 0.02  # how long a message that others stand before waits for them, before it is acked alone


class Ack(NamedTuple):
    """One ``basic.ack``."""

    tag: int
    multiple: bool


class Nack(NamedTuple):
    """One ``basic.nack`` that has the broker put the message back into its queue."""

    tag: int


class Acks:
    """Turns finished messages into as few acks as are right.

    What is finished waits up to 10 ms for more, while it is less than an eighth of what the broker has handed over and
    not heard of; then it is acked together: by one ``multiple`` ack up to the last message before which, on this
    channel, nothing is unfinished. What is finished behind an unfinished one waits 20 ms for it and is then acked
    alone, so that a slow message does not use up the prefetch of all the others.
    """

    def __init__(self, write: Callable[[Sequence[Ack | Nack]], None]) -> None:
        self._write = write
        self._open: OrderedDict[int, bool] = OrderedDict()
        self._finished = 0
        self._loop = asyncio.get_running_loop()
        self._soon = False
        self._gathered_at: asyncio.TimerHandle | None = None
        self._alone_at: asyncio.TimerHandle | None = None

    def came(self, tag: int) -> None:
        """A message was delivered; tags come in ascending order."""
        self._open[tag] = False

    def finish(self, tag: int) -> bool:
        """The message is dealt with: ack it in a moment. False if it was acked, or never came."""
        if self._open.get(tag, True):
            return False
        self._open[tag] = True
        self._finished += 1
        if not self._soon:
            if self._finished * SHARE >= len(self._open):
                self._soon = True
                self._loop.call_soon(self._flush)
            elif self._gathered_at is None:
                self._gathered_at = self._loop.call_later(GATHER_SECONDS, self._flush)
        return True

    def give_back(self, tag: int) -> bool:
        """The message is not dealt with: the broker is to deliver it again. False if it was acked, or never came."""
        if self._open.pop(tag, True):
            return False
        self._write([Nack(tag)])
        return True

    @property
    def is_empty(self) -> bool:
        """Whether everything that came is acked or given back."""
        return not self._open

    def flush(self) -> None:
        """Ack all that is finished, now."""
        self._flush()
        self._flush_alone()

    def _flush(self) -> None:
        self._soon = False
        if self._gathered_at is not None:
            self._gathered_at.cancel()
            self._gathered_at = None
        last = 0
        while self._open:
            tag, finished = self._open.popitem(last=False)
            if not finished:
                self._open[tag] = False
                self._open.move_to_end(tag, last=False)
                break
            last = tag
            self._finished -= 1
        if last:
            self._write([Ack(last, multiple=True)])
        if self._finished and self._alone_at is None:
            self._alone_at = self._loop.call_later(ALONE_SECONDS, self._flush_alone)

    def _flush_alone(self) -> None:
        if self._alone_at is not None:
            self._alone_at.cancel()
            self._alone_at = None
        if not self._finished:
            return
        tags = [tag for tag, finished in self._open.items() if finished]
        for tag in tags:
            del self._open[tag]
        self._finished = 0
        self._write([Ack(tag, multiple=False) for tag in tags])
