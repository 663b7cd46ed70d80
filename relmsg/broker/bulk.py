"""Publishing in bulk: one buffer for many messages, confirms as ranges of tags.

aiormq's own ``basic_publish`` costs a task, two futures and a write per message, and a confirm of many messages walks
all that are outstanding. Here a batch is one write, and an ``ack`` with ``multiple`` one slice.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiormq import Channel

from relmsg.broker.answer import close_quietly, why_closed
from relmsg.broker.batch import Batch
from relmsg.broker.decode import properties
from relmsg.broker.frame import BODY, HEADER, METHOD
from relmsg.broker.tap import Tap
from relmsg.broker.wire import frames
from relmsg.errors import BrokerAway

CHUNK_BYTES = 512 * 1024  # what is handed to the socket at once; the rest waits until it has drained

METHOD_ID = struct.Struct(">HH")
CONFIRM = struct.Struct(">QB")
CONTENT = struct.Struct(">HHQ")
BASIC_ACK, BASIC_NACK, BASIC_RETURN, CHANNEL_CLOSE = (60, 80), (60, 120), (60, 50), (20, 40)
CONFIRMS = frozenset({BASIC_ACK, BASIC_NACK})


@dataclass(slots=True)
class _Stretch:
    """Messages of one batch that were written together: the broker counts them by consecutive delivery tags."""

    first: int
    last: int
    batch: Batch
    offset: int
    """The position in the batch of the message with the first tag."""
    low: int
    """All tags below are answered."""
    left: int
    """How many are not answered."""
    by_id: dict[str, int] = field(default_factory=dict)

    def answer(self, first: int, last: int, *, nacked: bool) -> None:
        """The broker has spoken of these tags."""
        start, stop = self.offset + first - self.first, self.offset + last + 1 - self.first
        self.left -= self.batch.nacked(start, stop) if nacked else self.batch.acked(start, stop)

    def position(self, message_id: str) -> int | None:
        """Where a message stands in the batch. The table is made for the first return, which is rare."""
        if not self.by_id:
            written = self.batch.publications[self.offset : self.offset + self.last - self.first + 1]
            self.by_id = {publish.message_id: position for position, publish in enumerate(written, self.offset)}
        return self.by_id.get(message_id)


class BulkLine:
    """Publishes on a channel that aiormq has opened, past aiormq: its frames are written and read by us.

    Holds: the receipts of ``Batch``; a return is matched by message id to a message that is under way, and to nothing
    else. A frame that makes no sense ends the connection, and with it everything under way becomes Unknown.
    """

    def __init__(self, channel: Channel, tap: Tap, frame_max: int) -> None:
        self._channel = channel
        self._tap = tap
        self._frame_max = frame_max
        self._next_tag = channel.delivery_tag + 1
        self._stretches: deque[_Stretch] = deque()
        self._ended = False
        self._return: tuple[int, str] | None = None
        self._body_left = 0
        tap.attach(channel.number, self)
        self._closing: asyncio.Future[Any] = channel.closing
        self._closing.add_done_callback(self._lost)

    @property
    def is_open(self) -> bool:
        """Whether a batch can be written."""
        return not self._ended and not self._channel.is_closed and self._tap.is_open

    async def write(self, batch: Batch) -> None:
        """Put all frames of a batch into the socket, in pieces, so that other batches and heartbeats get their turn."""
        encoded = [frames(publish, self._channel.number, self._frame_max) for publish in batch.publications]
        half = len(encoded) // 2
        for start, stop in _chunks(encoded):
            if not self.is_open:
                # The broker has closed it; anything written after our Close-Ok would close the connection (P4).
                await self._channel.closing
                raise BrokerAway("the channel was closed")
            # From here to the write nothing may wait: the broker counts in the order of the bytes.
            count = stop - start
            first = self._next_tag
            self._stretches.append(_Stretch(first, first + count - 1, batch, start, low=first, left=count))
            self._next_tag += count
            batch.written = stop
            self._tap.write(b"".join(encoded[start:stop]))
            await self._tap.drained()
            if start < half <= stop:
                batch.reach("publish.half_of_frames")
        batch.reach("publish.after_last_frame")

    async def close(self) -> None:
        """Close the channel. Batches under way are given up."""
        await close_quietly(self._channel)
        self._end(BrokerAway("the channel was closed before the broker answered"))

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Called by the tap with each frame of the channel."""
        if kind == METHOD:
            method = METHOD_ID.unpack_from(data, start)
            if method in CONFIRMS:
                tag, flags = CONFIRM.unpack_from(data, start + 4)
                self._confirm(tag, multiple=bool(flags & 1), nacked=method == BASIC_NACK)
                return True
            if method == BASIC_RETURN:
                code = int.from_bytes(data[start + 4 : start + 6], "big")
                text = data[start + 7 : start + 7 + data[start + 6]]
                self._return = (code, text.decode(errors="replace"))
                return True
            if method == CHANNEL_CLOSE:
                self._ended = True  # aiormq answers in a moment; nothing may be written behind its Close-Ok
            return False
        if kind == HEADER and self._return is not None:
            self._body_left = CONTENT.unpack_from(data, start)[2]
            self._returned(properties(data[start:stop]).message_id or "", *self._return)
            self._return = None
            return True
        if kind == BODY and self._body_left:
            self._body_left -= stop - start
            return True
        return False

    def _confirm(self, tag: int, *, multiple: bool, nacked: bool) -> None:
        stretches = self._stretches
        if multiple:
            while stretches and stretches[0].first <= tag:
                stretch = stretches[0]
                upto = min(tag, stretch.last)
                stretch.answer(stretch.low, upto, nacked=nacked)
                stretch.low = max(stretch.low, upto + 1)
                if stretch.left:
                    return
                stretches.popleft()
            return
        for stretch in stretches:
            if tag <= stretch.last:
                stretch.answer(tag, tag, nacked=nacked)
                if not stretch.left:
                    stretches.remove(stretch)
                return

    def _returned(self, message_id: str, code: int, text: str) -> None:
        for stretch in self._stretches:
            position = stretch.position(message_id)
            if position is not None:
                stretch.batch.returned(position, code, text)
                return
        raise BrokerAway(f"RabbitMQ returned a message that nobody waits for: {message_id!r}")

    def _lost(self, closing: asyncio.Future[Any]) -> None:
        self._end(why_closed(closing))

    def _end(self, reason: BaseException) -> None:
        self._ended = True
        self._closing.cancel()
        self._tap.detach(self._channel.number, self)
        stretches, self._stretches = self._stretches, deque()
        for stretch in stretches:
            stretch.batch.give_up(reason)


def _chunks(encoded: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Ranges of messages to write at once: at least two per batch, none much over CHUNK_BYTES."""
    start, size, half = 0, 0, max(1, len(encoded) // 2)
    for position, payload in enumerate(encoded):
        size += len(payload)
        if size >= CHUNK_BYTES or position + 1 == half or position + 1 == len(encoded):
            yield start, position + 1
            start, size = position + 1, 0
