"""Receiving from one queue, and the one object through which a delivery can be acked."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from relmsg.broker.answer import answer, really_cancelled
from relmsg.broker.connection import Connection
from relmsg.broker.wire import PERSISTENT, PRIORITY, Publication, copy_of, received
from relmsg.clock import Clock, SystemClock
from relmsg.errors import BrokerRefused, RelmsgError, UsageError
from relmsg.message import Message
from relmsg.retry import full_jitter

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
NOT_FOUND = 404
KEPT = ("content_type", "content_encoding", "correlation_id", "reply_to", "timestamp", "message_type", "app_id")


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


class Delivery:
    """A message that the broker has handed to one channel, and waits to hear of on that channel only.

    It can be acked once. A second ack, or one on another channel, would make the broker close the channel and with it
    everything that is under way there (reliability B16), so both are answered with False here and never sent.
    """

    __slots__ = ("_channel", "_raw", "_settled", "generation", "message", "queue")

    def __init__(self, raw: DeliveredMessage, queue: str, channel: _Channel) -> None:
        self.message: Message = received(raw)
        self.queue = queue
        self.generation = channel.generation
        self._raw = raw
        self._channel = channel
        self._settled = False

    @property
    def redelivered(self) -> bool:
        """Whether the broker had given this message to some consumer before. False does not mean it is new."""
        return bool(self._raw.redelivered)

    @property
    def is_stale(self) -> bool:
        """Whether its channel is gone: the broker has taken the message back and will deliver it again."""
        return not self._channel.is_open

    async def ack(self) -> bool:
        """Tell the broker that the message is dealt with; False if that cannot be said (any more).

        True means the ack is written to the socket. The broker may still not have read it: then the message comes
        again.
        """
        if self._settled or self.is_stale or self._raw.delivery_tag is None:
            return False
        self._settled = True
        return await self._channel.ack(self._raw.delivery_tag)

    def copy(self, *, exchange: str, routing_key: str, message_id: str, headers: Mapping[str, Any]) -> Publication:
        """A publish of the same message to another place: body and properties as they came.

        New are the headers and, where given, the id. Delivery mode and priority are those of all our publishes. The
        expiration is left out, and so is the user id, which the broker would hold against *our* login.
        """
        came = self._raw.header.properties
        properties = Basic.Properties(
            **{name: getattr(came, name) for name in KEPT},
            message_id=message_id,
            headers=dict(headers),
            delivery_mode=PERSISTENT,
            priority=PRIORITY,
        )
        return copy_of(message_id, exchange, routing_key, properties, self._raw.body)

    @property
    def expiration(self) -> str | None:
        """The time to live the message was published with, in milliseconds."""
        return self._raw.header.properties.expiration or None


class Subscriber:
    """Consumes one queue with manual acks, for as long as ``run`` runs; a lost channel is replaced.

    The callback is called in the broker library's own task and must only note the delivery: whatever runs there dies
    with the connection (reliability C10).

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
        self._connection = connection
        self._deliver = deliver
        self._prefetch = require_prefetch(prefetch)
        self._clock = clock or SystemClock()
        self._chance = chance
        self._channel: _Channel | None = None
        self._stopping = False

    @property
    def is_consuming(self) -> bool:
        """Whether messages can arrive at this moment."""
        return self._channel is not None and self._channel.is_open

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
                await self._channel.lost.wait()
                if self._stopping:
                    return
                log.warning("queue %s: %s, subscribing again", self.queue, self._channel.why)
                await self._channel.close()
                self._channel = None
            failures += 1
            await self._clock.sleep(full_jitter(failures, 0.1, 10.0, self._chance))
            try:
                self._channel = await self._open()
                failures = 0
                log.info("queue %s: consuming again", self.queue)
            except RelmsgError as error:
                log.warning("queue %s: %s", self.queue, error)

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
        channel = _Channel(await self._connection.channel(within=ANSWER_SECONDS), self.generation)
        try:
            await channel.consume(self.queue, self._prefetch, lambda raw: self._take(raw, channel))
        except BaseException:
            await channel.close()
            raise
        return channel

    def _take(self, raw: DeliveredMessage, channel: _Channel) -> None:
        if not self._stopping:
            self._deliver(Delivery(raw, self.queue, channel))


class _Channel:
    """One channel in its one life: open, then lost. aiormq's tasks and errors end here."""

    def __init__(self, channel: aiormq.Channel, generation: int) -> None:
        self.generation = generation
        self.lost = asyncio.Event()
        self.why = "the channel was closed"
        self._channel = channel
        self._tag: str | None = None
        self._closing: asyncio.Future[Any] = channel.closing
        self._closing.add_done_callback(lambda _: self._lose("the channel was lost"))
        channel.on_consumer_cancel_callbacks.add(
            lambda _: self._lose("the broker cancelled the consumer: its queue is gone, or a message took too long")
        )

    @property
    def is_open(self) -> bool:
        return not (self.lost.is_set() or self._channel.is_closed)

    async def consume(self, queue: str, prefetch: int, callback: Callable[[DeliveredMessage], None]) -> None:
        await answer(self._channel.basic_qos(prefetch_count=prefetch), within=ANSWER_SECONDS)

        async def note(raw: DeliveredMessage) -> None:
            callback(raw)

        begun = await answer(self._channel.basic_consume(queue, note, no_ack=False), within=ANSWER_SECONDS)
        self._tag = begun.consumer_tag

    async def ack(self, delivery_tag: int) -> bool:
        try:
            await answer(self._channel.basic_ack(delivery_tag), within=ANSWER_SECONDS)
        except RelmsgError as error:
            # Written or not, it must never be sent again: give the channel up, the broker then delivers again.
            self._lose(f"an ack could not be written: {error}")
            return False
        return True

    async def cancel(self) -> None:
        if self._tag is not None:
            try:
                await answer(self._channel.basic_cancel(self._tag), within=ANSWER_SECONDS)
            except RelmsgError as error:
                self._lose(f"the broker did not confirm the end of the consumer: {error}")

    async def close(self) -> None:
        self._lose("the channel was closed")
        self._closing.cancel()
        if not self._channel.is_closed:
            try:
                with suppress(RelmsgError):
                    await answer(self._channel.close(), within=2.0)
            except asyncio.CancelledError:
                if really_cancelled():
                    raise

    def _lose(self, why: str) -> None:
        if not self.lost.is_set():
            self.why = why
            self.lost.set()
