"""A channel in confirm mode: a batch of publishes goes in, one receipt for each comes out.

aiormq's own ``basic_publish`` costs a task, two futures and a write per message. Here one buffer carries many messages,
and one small verdict object stands for each in aiormq's public maps: ``Channel.confirmations`` by delivery tag, and
``Channel.message_id_delivery_tag``, by which aiormq finds the publish that a return belongs to (the return itself
carries no tag). Two publishes with one message id in flight would therefore swap verdicts (reliability P2); the second
waits here until the first is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from aiormq import Channel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import PublishError
from pamqp.commands import Basic

from relmsg.broker.answer import answer, really_cancelled, reply_code, translate
from relmsg.broker.connection import Connection
from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.broker.wire import Publication, frames
from relmsg.errors import BrokerAway, RelmsgError
from relmsg.failpoint import FailpointReached, reach

CHUNK_BYTES = 512 * 1024  # what is handed to the socket at once; the rest waits until it has drained


class ConfirmChannel:
    """Publishes batches on one channel of a connection and tells what became of each message.

    Holds: every publish gets exactly one receipt, its own. Confirmed is given only for a message that the broker has
    acked and not returned. When the channel or the connection is lost, or ``deadline`` seconds pass without an answer,
    everything unanswered becomes Unknown; after a missed deadline the connection is cut as well.

    At most ``window`` messages are unconfirmed at a time; a batch larger than that is sent piece by piece. Several
    batches may be under way at once.
    """

    def __init__(self, connection: Connection, *, window: int = 2000, deadline: float = 30.0) -> None:
        self._connection = connection
        self._window = window
        self._deadline = deadline
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._in_flight: set[str] = set()
        self._answered = asyncio.Event()

    @property
    def unconfirmed(self) -> int:
        """How many messages are sent and not yet answered."""
        return len(self._in_flight)

    async def publish(self, publishes: Sequence[Publication]) -> list[Receipt]:
        """Send a batch and wait for all its receipts, in the order of ``publishes``.

        :raises BrokerAway: nothing at all could be sent.
        :raises InvalidMessage: a message cannot be encoded; nothing of its batch was sent.
        """
        receipts: dict[int, Receipt] = {}
        waiting = list(enumerate(publishes))
        while waiting:
            free = self._take_free(waiting)
            if not free:
                self._answered.clear()
                await self._answered.wait()
                continue
            batch = await self._send(free, first=not receipts)
            await batch.answered(self._deadline, self._connection.abort)
            receipts.update(batch.receipts)
        return [receipts[position] for position in range(len(publishes))]

    async def close(self) -> None:
        """Close the channel; what is still unanswered becomes Unknown."""
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            with suppress(Exception):
                await answer(channel.close(), within=2.0)

    def _take_free(self, waiting: list[tuple[int, Publication]]) -> list[tuple[int, Publication]]:
        free: list[tuple[int, Publication]] = []
        later: list[tuple[int, Publication]] = []
        for item in waiting:
            publish = item[1]
            if len(self._in_flight) >= self._window or publish.message_id in self._in_flight:
                later.append(item)
            else:
                self._in_flight.add(publish.message_id)
                free.append(item)
        waiting[:] = later
        return free

    def _release(self, items: Sequence[tuple[int, Publication]]) -> None:
        self._in_flight.difference_update(publish.message_id for _, publish in items)
        self._answered.set()

    async def _open(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._connection.channel(confirms=True)
            if self._connection.blocked:
                raise BrokerAway("RabbitMQ has blocked publishing (memory or disk alarm)")
            return self._channel

    async def _send(self, items: Sequence[tuple[int, Publication]], *, first: bool) -> _Batch:
        try:
            channel = await self._open()
            encoded = [frames(publish, channel.number, self._connection.frame_max) for _, publish in items]
        except BaseException as error:
            self._release(items)
            if first or not isinstance(error, BrokerAway):
                raise
            return _Batch.unsent(items, error)
        batch = _Batch(channel, items, lambda: self._release(items))
        try:
            async with asyncio.timeout(self._deadline), channel.lock:
                await batch.write(encoded)
        except TimeoutError as error:
            self._connection.abort()
            batch.give_up(error)
        except asyncio.CancelledError as error:
            batch.give_up(error)
            if really_cancelled():
                raise
        except FailpointReached:
            raise
        except Exception as error:  # noqa: BLE001 - whatever broke the write, the verdict is the same: unknown
            batch.give_up(error)
        return batch


class _Batch:
    """The messages of one write and what the broker says of each.

    It ends by itself, whether or not anyone still waits for it: by the last answer, or when its channel closes.
    """

    def __init__(self, channel: Channel, items: Sequence[tuple[int, Publication]], ended: Callable[[], None]) -> None:
        self.receipts: dict[int, Receipt] = {}
        self._channel = channel
        self._items = items
        self._ended = ended
        self._complete = asyncio.Event()
        self._closing: asyncio.Future[Any] = channel.closing
        self._closing.add_done_callback(self._lost)

    @classmethod
    def unsent(cls, items: Sequence[tuple[int, Publication]], error: BaseException) -> _Batch:
        batch = cls.__new__(cls)
        batch.receipts = {position: Unknown(publish.message_id, error) for position, publish in items}
        batch._complete = asyncio.Event()
        batch._complete.set()
        return batch

    async def write(self, encoded: Sequence[bytes]) -> None:
        """Put all frames into the socket. Called under the channel's lock: tags are given in the order of writing."""
        half = len(encoded) // 2
        written = 0
        for start, stop in _chunks(encoded):
            await self._write_chunk(start, stop, b"".join(encoded[start:stop]))
            if written < half <= stop:
                reach("publish.half_of_frames")
            written = stop
        reach("publish.after_last_frame")

    async def _write_chunk(self, start: int, stop: int, payload: bytes) -> None:
        channel = self._channel
        first_tag = channel.delivery_tag + 1
        for tag, (position, publish) in enumerate(self._items[start:stop], first_tag):
            channel.confirmations[tag] = _Verdict(self, position, publish)  # type: ignore[assignment]
            channel.message_id_delivery_tag[publish.message_id] = tag
        channel.delivery_tag += stop - start
        drained = channel.create_future()
        try:
            await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False, drain_future=drained))
        except BaseException:
            # Not in the queue, so the broker will never count these: the next publish must take the same tags.
            for tag, (_, publish) in enumerate(self._items[start:stop], first_tag):
                channel.confirmations.pop(tag, None)
                channel.message_id_delivery_tag.pop(publish.message_id, None)
            channel.delivery_tag -= stop - start
            drained.cancel()
            raise
        await drained

    def settle(self, position: int, publish: Publication, receipt: Receipt) -> None:
        """The broker has answered for one message."""
        if not self.receipts:
            reach("publish.after_first_confirm")
        self.receipts[position] = receipt
        self._channel.message_id_delivery_tag.pop(publish.message_id, None)
        if len(self.receipts) == len(self._items):
            self._end()

    def give_up(self, cause: BaseException) -> None:
        """Everything unanswered becomes Unknown."""
        code = reply_code(cause)
        reason = cause if isinstance(cause, TimeoutError | RelmsgError) else translate(cause)
        for position, publish in self._items:
            if position not in self.receipts:
                self.receipts[position] = Unknown(publish.message_id, reason, code)
                self._channel.message_id_delivery_tag.pop(publish.message_id, None)
        self._end()

    async def answered(self, deadline: float, abort: Callable[[], None]) -> None:
        """Wait until each message has its receipt; after the deadline cut the connection, the rest is Unknown."""
        try:
            async with asyncio.timeout(deadline):
                await self._complete.wait()
        except TimeoutError:
            abort()
            self.give_up(TimeoutError(f"no confirm within {deadline:g} s"))
        reach("publish.after_all_confirms")

    def _end(self) -> None:
        if not self._complete.is_set():
            self._complete.set()
            self._closing.cancel()
            self._ended()

    def _lost(self, closing: asyncio.Future[Any]) -> None:
        if not self._complete.is_set():
            reason = None if closing.cancelled() else closing.exception()
            self.give_up(reason or BrokerAway("the connection to RabbitMQ was lost"))


class _Verdict:
    """Stands in ``Channel.confirmations`` where aiormq would keep a future; aiormq calls just these three methods."""

    __slots__ = ("batch", "position", "publish")

    def __init__(self, batch: _Batch, position: int, publish: Publication) -> None:
        self.batch = batch
        self.position = position
        self.publish = publish

    def done(self) -> bool:
        return self.position in self.batch.receipts

    def cancelled(self) -> bool:
        return True  # the batch gave up before the broker answered: aiormq then logs a late answer as debug only

    def set_result(self, _: object) -> None:
        self.batch.settle(self.position, self.publish, Confirmed(self.publish.message_id))

    def set_exception(self, error: BaseException) -> None:
        publish = self.publish
        receipt: Receipt = Nacked(publish.message_id)
        if isinstance(error, PublishError) and isinstance(error.frame, Basic.Return):
            code, text = error.frame.reply_code or 312, error.frame.reply_text or "NO_ROUTE"
            receipt = Returned(publish.message_id, publish.exchange, publish.routing_key, code, text)
        self.batch.settle(self.position, publish, receipt)


async def publish_alone(connection: Connection, publish: Publication, *, deadline: float = 30.0) -> Receipt:
    """Send one message on a channel of its own: if the broker closes it, this message alone was the reason.

    :raises BrokerAway: it could not be sent.
    :raises InvalidMessage: it cannot be encoded.
    """
    channel = ConfirmChannel(connection, deadline=deadline)
    try:
        return (await channel.publish([publish]))[0]
    finally:
        await channel.close()


def _chunks(encoded: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Ranges of messages to write at once: at least two per batch, none much over CHUNK_BYTES."""
    start, size, half = 0, 0, max(1, len(encoded) // 2)
    for position, payload in enumerate(encoded):
        size += len(payload)
        if size >= CHUNK_BYTES or position + 1 == half or position + 1 == len(encoded):
            yield start, position + 1
            start, size = position + 1, 0
