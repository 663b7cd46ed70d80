"""Bounds the lines that are logged for single messages: some of each kind a minute, and one that counts the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

MINUTE = 60.0
LINES = 20
MOST_KINDS = 1000
GATHER_SECONDS = 5.0


class BoundedLog:
    """Logs LINES lines of a kind in a minute, and says in one more how many there were besides.

    A kind is the text before its values are put in, and what ``about`` names besides: a queue, a reason. The line that
    counts comes five seconds after the first that was left out, and at most once a minute. To be used in an event loop.
    """

    def __init__(self, log: logging.Logger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def info(self, text: str, *values: object, about: str = "") -> None:
        """As ``Logger.info``."""
        self._line(logging.INFO, text, values, about)

    def warning(self, text: str, *values: object, about: str = "") -> None:
        """As ``Logger.warning``."""
        self._line(logging.WARNING, text, values, about)

    def error(self, text: str, *values: object, about: str = "") -> None:
        """As ``Logger.error``."""
        self._line(logging.ERROR, text, values, about)

    def _line(self, level: int, text: str, values: tuple[object, ...], about: str) -> None:
        if not self._log.isEnabledFor(level):
            return
        now = self._monotonic()
        if len(self._kinds) >= MOST_KINDS:
            self._kinds = {each: kind for each, kind in self._kinds.items() if now - kind.began < MINUTE}
        kind = self._kinds.setdefault((text, about), _Kind(now))
        if now - kind.began >= MINUTE:
            kind.began, kind.lines = now, 0
        if kind.lines < LINES:
            kind.lines += 1
            self._log.log(level, text, *values)
            return
        kind.left_out += 1
        if kind.left_out == 1:
            wait = max(GATHER_SECONDS, kind.tell_at - now)
            asyncio.get_running_loop().call_later(wait, self._tell, level, text, about, kind)

    def _tell(self, level: int, text: str, about: str, kind: _Kind) -> None:
        count, kind.left_out = kind.left_out, 0
        kind.tell_at = self._monotonic() + MINUTE
        such = f" {about}" if about else ""
        self._log.log(level, "and %d more such lines%s: %s", count, such, text.partition("\n")[0])


class _Kind:
    """Lines of one text."""

    __slots__ = ("began", "left_out", "lines", "tell_at")

    def __init__(self, now: float) -> None:
        self.began = now
        self.lines = self.left_out = 0
        self.tell_at = 0.0
