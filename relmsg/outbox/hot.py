"""Keys with more rows than the relay holds of one key. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from typing import NamedTuple

HOT_PER_SLOT = 16


class HotKey(NamedTuple):
    """A key with more rows than its lane takes: what follows ``tail`` is read for it alone, as the lane drains."""

    key: str
    slot: int
    tail: int


class HotKeys:
    """The hot keys by name, and how many each slot has."""

    def __init__(self) -> None:
        self._keys: dict[str, HotKey] = {}
        self._in_slot: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[HotKey]:
        return iter(self._keys.values())

    def get(self, key: str) -> HotKey | None:
        """The hot key of this name."""
        return self._keys.get(key)

    @property
    def slots(self) -> frozenset[int]:
        """The slots that have any."""
        return frozenset(slot for slot, count in self._in_slot.items() if count)

    def crowded(self, slot: int) -> bool:
        """Whether a slot has as many hot keys as it may."""
        return self._in_slot[slot] >= HOT_PER_SLOT

    def heat(self, hot: HotKey) -> None:
        """A key that was not hot is."""
        self._keys[hot.key] = hot
        self._in_slot[hot.slot] += 1

    def cool(self, key: str) -> None:
        """A key is not hot any more, if it was."""
        hot = self._keys.pop(key, None)
        if hot is not None:
            self._in_slot[hot.slot] -= 1

    def forget_slots(self, slots: Container[int]) -> None:
        """No key of these slots is hot."""
        for hot in [hot for hot in self if hot.slot in slots]:
            self.cool(hot.key)
