"""What a read of the outbox brought: the rows that can be sent, and those that cannot. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from relmsg.errors import InvalidMessage
from relmsg.outbox.row import Row, row_of

MOST_BYTES = 32 * 1024 * 1024


class Malformed(NamedTuple):
    """A row that can never be sent as it is, and why."""

    id: int
    slot: int
    reason: str


class Page:
    """The records of a read, held against every rule.

    ``cut`` tells that the size limit may have held back records that were there.
    """

    def __init__(self, records: Sequence[Any], *, max_body_bytes: int) -> None:
        self.records = records
        self.cut = sum(len(record["body"]) for record in records) >= MOST_BYTES
        self.rows: list[tuple[Row, Any]] = []
        self.malformed: list[Malformed] = []
        for record in records:
            try:
                self.rows.append((row_of(record, max_body_bytes=max_body_bytes), record))
            except InvalidMessage as error:
                self.malformed.append(Malformed(record["id"], record["slot"], f"cannot be sent: {error}"))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Slot and id of each record."""
        return [(record["slot"], record["id"]) for record in self.records]
