"""Receiving from one queue: a subscription that is kept up."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import aiormq
from aiormq.abc import DeliveredMessage

from relmsg.amqp.remarks import Remarks
from relmsg.broker.acks import Ack, Acks, Nack
from relmsg.broker.answer import answer, really_cancelled, reply_code, why_closed
from relmsg.broker.connection import Connection
from relmsg.broker.delivery import Delivery as Delivery
from relmsg.broker.notes import Notes
from relmsg.broker.receiving import Receiving, ack_frames
from relmsg.broker.tap import Tap
from relmsg.broker.wire import received
from relmsg.clock import Clock, SystemClock
from relmsg.errors import BrokerRefused, RelmsgError, UsageError
from relmsg.message import Message
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
NOT_FOUND, INTERNAL_ERROR = 404, 541
CLOSE_SECONDS = 2.0
LOSSES_IN_A_ROW = 3
PROVEN = 100  # messages that have to be acked one by one before the broker is asked for many again
IDLE_LOOK_SECONDS = 0.05


class QueueMissing(UsageError):
    """The queue does not exist: declare it, for example with `relmsg topology declare`."""


def require_prefetch(count: int) -> int:
    """The count, if it is a limit. :raises UsageError: it is none."""
    if not 1 <= count <= 65_535:
        raise UsageError("prefetch is 1 to 65535: without a limit the broker would send the whole queue at once")
    return count


async def require_queue(connection: Connection, queue: str) -> None:
    """Return if the queue exists. :raises QueueMissing: it does not."""
    channel = await connection.channel(within=ANSWER_SECONDS)
    with _missing(queue):
        await answer(channel.queue_declare(queue, passive=True), within=ANSWER_SECONDS)
    await answer(channel.close(), within=ANSWER_SECONDS)


@contextmanager
def _missing(queue: str) -> Iterator[None]:
    try:
        yield
    except BrokerRefused as error:
        if error.reply_code != NOT_FOUND:
            raise
        raise QueueMissing(
            f"queue {queue!r} does not exist: declare it, for example with `relmsg topology declare`"
        ) from error


class Subscriber:
    """Consumes one queue with manual acks, for as long as ``run`` runs; a lost channel is replaced.

    A message can crash the channel inside the broker, such as one with an AMQP 1.0 property that 0-9-1 cannot carry.
    All that is prefetched is then delivered again and counted each time. So after three losses in a row with nothing
    acked, messages are taken one at a time: only the one at fault is counted, and the broker dead-letters it at the
    queue's delivery limit. After 100 acks the prefetch is as before.

    The callback is called in the middle of a read of the socket and must only note the delivery: an exception there
    ends the connection (reliability C10).

    :param queue: empty for a private one, which the broker names and which lives as long as its channel: ``address``.
    :param prefetch: how many messages the broker hands over before it waits for acks, at least 1. Without a limit it
        would send the whole queue (reliability C23).
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        deliver: Callable[[Delivery], None],
        *,
        prefetch: int,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.queue = queue
        self.generation = 0
        self._shown = queue or "(private)"
        self._connection = connection
        self._deliver = deliver
        self._prefetch = require_prefetch(prefetch)
        self._clock = clock or SystemClock()
        self._chance = chance
        self._channel: _Channel | None = None
        self._stopping = False
        self._in_vain = 0
        self._wanted = asyncio.Event()
        self._wanted.set()

    @property
    def is_paused(self) -> bool:
        """Whether ``pause`` has ended the subscription, and ``resume`` is still to come."""
        return not self._wanted.is_set()

    @property
    def is_consuming(self) -> bool:
        """Whether messages can arrive at this moment."""
        return self._channel is not None and self._channel.is_open

    @property
    def address(self) -> str | None:
        """The name of the queue it consumes at this moment, also where the broker gave it; None while it is lost."""
        return self._channel.queue if self._channel is not None and self._channel.is_open else None

    async def start(self) -> None:
        """Begin to consume.

        :raises QueueMissing: there is no such queue.
        :raises BrokerAway, AccessRefused, BrokerRefused: as the broker answers.
        """
        with _missing(self.queue):
            self._channel = await self._open()

    async def run(self) -> None:
        """Replace the channel whenever it is lost, with backoff and full jitter (0.1 s up to 10 s), until cancelled.

        Also after the broker has cancelled the consumer, because the queue was deleted or a delivery took too long: the
        channel is closed then, so that nothing stays unacked on it (reliability B5).
        """
        failures = 0
        while True:
            if self._channel is not None:
                is_proven = await self._until_over(self._channel)
                if self._stopping:
                    return
                if is_proven:
                    log.info("queue %s: %d messages were acked one by one, asking for many again", self._shown, PROVEN)
                elif not self.is_paused:
                    self._count_loss(self._channel)
                    log.warning("queue %s: %s, subscribing again", self._shown, self._channel.why)
                await self._channel.close()
                self._channel = None
            await self._wanted.wait()
            failures = max(failures, self._in_vain - LOSSES_IN_A_ROW) + 1
            await self._clock.sleep(full_jitter(failures, 0.1, 10.0, self._chance))
            try:
                self._channel = await self._open()
                if self.is_paused:
                    await self._channel.close()
                failures = 0
                log.info("queue %s: consuming again", self._shown)
            except RelmsgError as error:
                log.warning("queue %s: %s", self._shown, error)

    @property
    def takes_one_at_a_time(self) -> bool:
        """Whether channels were lost again and again, so that the message at fault is looked for."""
        return self._in_vain >= LOSSES_IN_A_ROW

    async def _until_over(self, channel: _Channel) -> bool:
        """Wait until the channel is lost: False; or it can be replaced by one with the full prefetch: True."""
        if not self.takes_one_at_a_time:
            await channel.lost.wait()
            return False
        ends = [asyncio.create_task(channel.lost.wait()), asyncio.create_task(channel.proven.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if channel.lost.is_set() or self._stopping:
            return False
        self._in_vain = 0
        await channel.cancel()
        while channel.is_open and not channel.is_idle:
            await self._clock.sleep(IDLE_LOOK_SECONDS)
        return not channel.lost.is_set()

    def _count_loss(self, channel: _Channel) -> None:
        """Count the losses that one message may be the reason of."""
        if channel.acked and channel.reply_code != INTERNAL_ERROR:
            self._in_vain = 0
            return
        self._in_vain += 1
        if self._in_vain > LOSSES_IN_A_ROW:
            log.error(
                "queue %s: the channel is lost whenever the message at its head is delivered (%d times; %s): perhaps "
                "AMQP 0-9-1 cannot carry it; at its delivery limit the broker dead-letters it, without one remove it",
                self._shown,
                self._in_vain,
                channel.seen,
            )
        elif self._in_vain == LOSSES_IN_A_ROW:
            log.warning("queue %s: %d channels were lost, taking one message at a time", self._shown, self._in_vain)

    async def pause(self) -> None:
        """End the subscription, so that the broker takes back whatever was not acked; ``run`` waits for ``resume``."""
        self._wanted.clear()
        if self._channel is not None:
            if self._channel.is_open:
                await self._channel.cancel()
            await self._channel.close()

    def resume(self) -> None:
        """Have ``run`` subscribe again."""
        self._wanted.set()

    async def stop(self) -> None:
        """Have the broker send nothing more, and wait for its word on it. What was delivered can still be acked."""
        self._stopping = True
        if self._channel is not None and self._channel.is_open:
            await self._channel.cancel()

    async def close(self) -> None:
        """Close the channel: the broker takes back whatever was not acked."""
        self._stopping = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _open(self) -> _Channel:
        self.generation += 1
        channel = _Channel(self._connection, self.queue, self._take, self.generation)
        try:
            await channel.open(1 if self.takes_one_at_a_time else self._prefetch)
        except BaseException:
            await channel.close()
            raise
        return channel

    def _take(self, delivery: Delivery) -> None:
        if not self._stopping:
            self._deliver(delivery)


class _Channel:
    """One channel in its one life: open, then lost. aiormq's tasks and errors end here.

    Deliveries are read past aiormq where the connection has a tap; those that aiormq reads all the same are taken as
    well.
    """

    def __init__(
        self, connection: Connection, queue: str, deliver: Callable[[Delivery], None], generation: int
    ) -> None:
        self.generation = generation
        self.lost = asyncio.Event()
        self.why = "the channel was closed"
        self.proven = asyncio.Event()
        self.acked = 0
        self.reply_code: int | None = None
        self.seen = "nothing was delivered before"
        self.queue = queue
        self._connection = connection
        self._deliver = deliver
        self._acks = Acks(self._write)
        self._receiving = Receiving(self._arrived, lambda: self._lose("the broker closed the channel"))
        self._tap: Tap | None = None
        self._channel: aiormq.Channel | None = None
        self._closing: asyncio.Future[Any] | None = None
        self._unwritten: deque[Ack | Nack] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._tag: str | None = None
        self._last: Message | None = None
        self._notes = Notes(queue)

    @property
    def is_open(self) -> bool:
        return self._channel is not None and not (self.lost.is_set() or self._channel.is_closed)

    async def open(self, prefetch: int) -> None:
        channel = self._channel = await self._connection.channel(within=ANSWER_SECONDS)
        self._closing = channel.closing
        self._closing.add_done_callback(self._closed)
        channel.on_consumer_cancel_callbacks.add(
            lambda _: self._lose("the broker cancelled the consumer: its queue is gone, or a message took too long")
        )
        await answer(channel.basic_qos(prefetch_count=prefetch), within=ANSWER_SECONDS)
        self._tap = self._connection.tap
        if self._tap is not None:
            self._tap.attach(channel.number, self._receiving, self._receiving.take_many)
        if not self.queue:
            private = channel.queue_declare(exclusive=True, auto_delete=True)
            self.queue = (await answer(private, within=ANSWER_SECONDS)).queue or ""
        begun = await answer(channel.basic_consume(self.queue, self._note, no_ack=False), within=ANSWER_SECONDS)
        self._tag = begun.consumer_tag

    @property
    def is_idle(self) -> bool:
        return self._acks.is_empty

    def finish(self, tag: int) -> bool:
        if not self._acks.finish(tag):
            return False
        self.acked += 1
        if self.acked == PROVEN:
            self.proven.set()
        return True

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        self.reply_code = reply_code(why_closed(closing))
        self._lose("the channel was lost")

    def give_back(self, tag: int) -> bool:
        return self._acks.give_back(tag)

    async def cancel(self) -> None:
        if self._tag is not None and self._channel is not None:
            try:
                await answer(self._channel.basic_cancel(self._tag), within=ANSWER_SECONDS)
            except RelmsgError as error:
                self._lose(f"the broker did not confirm the end of the consumer: {error}")

    async def close(self) -> None:
        if self.is_open:
            self._acks.flush()
            if self._writing is not None:
                await asyncio.wait({self._writing}, timeout=CLOSE_SECONDS)
        self._lose("the channel was closed")
        if self._closing is not None:
            self._closing.cancel()
        if self._channel is not None and not self._channel.is_closed:
            try:
                with suppress(RelmsgError):
                    await answer(self._channel.close(), within=CLOSE_SECONDS)
            except asyncio.CancelledError:
                if really_cancelled():
                    raise

    async def _note(self, raw: DeliveredMessage) -> None:
        """A delivery that aiormq has read."""
        properties = raw.header.properties
        cluster_id = properties.cluster_id or None
        remarks = None if cluster_id is None else Remarks(cluster_id=cluster_id)
        self._arrived(raw.delivery_tag or 0, received(raw), properties.expiration or None, remarks)

    def _arrived(self, tag: int, message: Message, expiration: str | None, remarks: Remarks | None) -> None:
        self._acks.came(tag)
        self._last = message
        came = Delivery(message, self.queue, self, tag, expiration=expiration, remarks=remarks)
        if remarks is not None and remarks.altered and remarks.fault is None:
            self._notes.tell(message, remarks.altered)
        self._deliver(came)

    def _write(self, acks: Sequence[Ack | Nack]) -> None:
        channel = self._channel
        if not self.is_open or channel is None:
            return
        if self._tap is not None:
            self._tap.write(ack_frames(channel.number, acks))
            return
        self._unwritten += acks
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_plainly(channel))
            self._writing.add_done_callback(self._written)

    async def _write_plainly(self, channel: aiormq.Channel) -> None:
        """One after another: an ack that overtook a ``multiple`` one would be for a message that is acked already."""
        try:
            while self._unwritten:
                ack = self._unwritten.popleft()
                if isinstance(ack, Nack):
                    await answer(channel.basic_nack(ack.tag, requeue=True), within=ANSWER_SECONDS)
                else:
                    await answer(channel.basic_ack(ack.tag, multiple=ack.multiple), within=ANSWER_SECONDS)
        except RelmsgError as error:
            # Written or not, it must never be sent again: give the channel up, the broker then delivers again.
            self._unwritten.clear()
            self._lose(f"an ack could not be written: {error}")

    def _written(self, writing: asyncio.Task[None]) -> None:
        if writing.cancelled() or writing.exception() is not None:
            self._unwritten.clear()
            self._lose("an ack could not be written")

    def _lose(self, why: str) -> None:
        if self._tap is not None and self._channel is not None:
            self._tap.detach(self._channel.number, self._receiving)
        if not self.lost.is_set():
            if self._last is not None:
                self.seen = f"the last one before it was {self._last.id or 'one without an id'}"
            self.why = why
            self.lost.set()
