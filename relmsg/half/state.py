"""What a half message can be, and what can be decided about it."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class HalfState(StrEnum):
    """Where a half message stands. COMMITTED and ROLLED_BACK are final: whoever comes first decides, and all that come
    later are told."""

    PREPARED = "PREPARED"
    """Stored by the coordinator, invisible to consumers."""
    COMMITTED = "COMMITTED"
    """It is in the outbox, or has been: it is sent as any other message."""
    ROLLED_BACK = "ROLLED_BACK"
    """It will never be sent."""
    PARKED = "PARKED"
    """Nobody knew the answer when the last check was over; the producer or an operator may still decide."""
    UNKNOWN = "UNKNOWN"
    """Only as an answer to a producer: no coordinator has said yet what became of it; the check-back will find out."""

    @property
    def is_final(self) -> bool:
        """Whether nothing can change it any more."""
        return self in (HalfState.COMMITTED, HalfState.ROLLED_BACK)


class Resolution(StrEnum):
    """What a producer or a checker says of its local transaction."""

    COMMIT = "COMMIT"
    """It is committed: send the message."""
    ROLLBACK = "ROLLBACK"
    """It is not committed, and never will be: drop the message."""
    UNKNOWN = "UNKNOWN"
    """Nobody can tell now: ask again later. Never taken for one of the others."""


OPEN: Final = (HalfState.PREPARED, HalfState.PARKED)
"""The states in which a decision still counts."""

DECIDES: Final = MappingProxyType({Resolution.COMMIT: HalfState.COMMITTED, Resolution.ROLLBACK: HalfState.ROLLED_BACK})
"""What an open half message becomes by a decision; UNKNOWN decides nothing."""
