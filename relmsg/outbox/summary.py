"""Bounds how many lines of one kind are logged, and counts the others. Pure; the time comes in."""

from __future__ import annotations

MINUTE = 60.0
LINES = 20
GATHER_SECONDS = 5.0


class Summary:
    """Lets LINES lines through a minute, and says in one more how many there were besides.

    ``what`` completes the sentence "and 980 more …".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = -MINUTE
        self._lines = 0
        self._left_out = 0
        self._tell_at = 0.0

    def may_tell(self, now: float) -> bool:
        """Whether this line may be logged; one that may not is counted."""
        if now - self._began >= MINUTE:
            self._began, self._lines = now, 0
        if self._lines < LINES:
            self._lines += 1
            return True
        if not self._left_out:
            self._tell_at = max(now + GATHER_SECONDS, self._tell_at)
        self._left_out += 1
        return False

    def told(self, now: float) -> str | None:
        """The sentence about the lines left out, once they have gathered for five seconds, at most once a minute."""
        if not self._left_out or now < self._tell_at:
            return None
        count, self._left_out = self._left_out, 0
        self._tell_at = now + MINUTE
        return f"and {count} more {self._what}"
