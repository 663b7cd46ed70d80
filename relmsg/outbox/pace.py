"""How much one statement may look over, and how often: work that can be done in pieces never takes more than its share.

Pure; the time comes in.
"""

from __future__ import annotations

from relmsg.runtime.rest import rest_after

CHEAP_SECONDS = 0.002  # what costs less than this is done as often as asked for
PIECE_SECONDS = 0.02
SHARE = 0.1
FIRST_SPAN = 2**16
MOST_REST_SECONDS = 5.0  # ten times what the dearest piece takes: a longer rest would be for an outage
LEAST_SPAN, MOST_SPAN = 2**12, 2**19  # a piece that meets the most dead or left-out rows after none takes half a second


class Pace:
    """The pace of one kind of work.

    Holds: pieces take about ``piece`` seconds, and all of them together at most ``share`` of the time, cheap ones
    excepted. After a piece that an outage has held up the rest is five seconds.
    """

    def __init__(self, share: float = SHARE, piece: float = PIECE_SECONDS) -> None:
        self._share = share
        self._piece = piece
        self.span = FIRST_SPAN  # ids a piece may cover
        self.cheap = True
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether the next piece may be done."""
        return now >= self._next

    def spent(self, seconds: float, now: float) -> None:
        """A piece has taken so long, and ended now."""
        if seconds > self._piece:
            self.span = max(LEAST_SPAN, int(self.span * self._piece / seconds))
        elif seconds < self._piece / 2:
            self.span = min(MOST_SPAN, self.span * 2)
        self.cheap = seconds <= CHEAP_SECONDS
        self._next = now
        if not self.cheap:
            self._next += rest_after(seconds, share=self._share, most=MOST_REST_SECONDS)
