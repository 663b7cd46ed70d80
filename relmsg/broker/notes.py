"""Logs what was left out of received messages, at most one line a minute for each queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from relmsg.message import Message

log = logging.getLogger(__name__)

SECONDS = 60.0


class Notes:
    """Tells of messages that are handled without a property or header that could not be read."""

    def __init__(self, queue: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._monotonic = monotonic
        self._told: float | None = None
        self._untold = 0

    def tell(self, message: Message, altered: Sequence[str]) -> None:
        """Log a warning, unless there was one within the last minute; then the next one tells how many it omits."""
        now = self._monotonic()
        if self._told is not None and now - self._told < SECONDS:
            self._untold += 1
            return
        others = f" (and {self._untold} messages before it, since the last such line)" if self._untold else ""
        self._told, self._untold = now, 0
        log.warning(
            "queue %s: message %r is handled without what cannot be read of it: %s%s",
            self._queue,
            message.id,
            ", ".join(altered),
            others,
        )
