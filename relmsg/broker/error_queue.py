"""Reading an error queue, and moving its messages back or away, so that stopping at any moment loses nothing.

A message leaves the error queue by an ack, and the ack is sent only after the broker has confirmed its copy in the
source queue. Stopped between the two, a message is in both queues, under one id: an inbox lets it take effect once.

"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Self, TypeVar

from pamqp.commands import Basic

from relmsg.amqp.moved_ids import MOVED_CORRELATION_ID, fitting_id
from relmsg.broker import error_headers as names
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.declare import differences, queue_exists
from relmsg.broker.envelope import MAX_EXPIRATION_MS
from relmsg.broker.error_entry import ErrorEntry, ErrorFilter, entry_of, text_of
from relmsg.broker.error_headers import strip
from relmsg.broker.error_reader import AnyReader, ReadingEnded, reading
from relmsg.broker.one_by_one import Unreadable, one_by_one, returned
from relmsg.broker.receipt import Confirmed
from relmsg.broker.unacked import Unacked
from relmsg.broker.wire import PERSISTENT, Publication, copy_of
from relmsg.clock import Clock, SystemClock
from relmsg.errors import AccessRefused, InvalidMessage, UnreadableMessages, UsageError
from relmsg.message import Message
from relmsg.topology import ERROR_SUFFIX, error_queue

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

BATCH = 100  # messages that are published and not yet acked: so many can be doubled by a SIGKILL
ROUTING = ("CC", "BCC")  # RabbitMQ reads these as further routing keys of a publish
HARMLESS_LIMIT = 10_000  # returns


@dataclass(frozen=True, slots=True)
class Stayed:
    """A message that was to be moved and is still in the error queue, and why."""

    entry: ErrorEntry
    reason: str


class ErrorQueue:
    """The error queue of ``source``. Open it with ``ErrorQueue.of``.

    Messages are read with tolerance: what cannot be read of one is left out or repaired, the entry tells it, and the
    others are not concerned. Still there are messages that end the connection of everyone who reads them: RabbitMQ 4
    cannot deliver some of AMQP 1.0's. After such a loss the messages are read one by one, and those at fault stay where
    they are. ``unreadable`` is then told of them; without it, what was asked for is done for all others, and
    UnreadableMessages is raised in the end. In a classic queue nothing behind the first of them can be reached.
    """

    def __init__(
        self,
        connection: Connection,
        source: str,
        *,
        clock: Clock | None = None,
        unreadable: Callable[[Unreadable], None] | None = None,
    ) -> None:
        self.source = source
        self.name = source + ERROR_SUFFIX
        self._connection = connection
        self._clock = clock or SystemClock()
        self._unreadable = unreadable or _raise

    @classmethod
    async def of(
        cls, connection: Connection, queue: str, *, unreadable: Callable[[Unreadable], None] | None = None
    ) -> Self:
        """The error queue of ``queue``; its own name, ``<queue>.errors``, is taken as well.

        Only queues of such a name are ever read here: a slip of the pen must not empty a queue that is at work.

        :raises UsageError: there is none.
        :raises BrokerAway: no answer.
        """
        if queue.endswith(ERROR_SUFFIX) and await queue_exists(connection, queue):
            return cls(connection, queue.removesuffix(ERROR_SUFFIX), unreadable=unreadable)
        if await queue_exists(connection, queue + ERROR_SUFFIX):
            return cls(connection, queue, unreadable=unreadable)
        if await queue_exists(connection, queue):
            raise UsageError(
                f"queue {queue!r} has no error queue: {queue + ERROR_SUFFIX!r} is made when its consumer first starts, "
                "or by `relmsg topology declare`"
            )
        raise UsageError(f"there is no queue {queue!r}, and no {queue + ERROR_SUFFIX!r}")

    async def hazard(self) -> str | None:
        """What looking at this queue does to it, None if nothing is known of any harm.

        Every look returns the messages, and a quorum queue counts that. Who may read but not configure cannot find out,
        and is not kept from reading.
        """
        try:
            told = await differences(self._connection, error_queue(self.source))
        except AccessRefused:
            return None
        found = {each.argument: each for each in told}
        limit = found.get("x-delivery-limit")
        kind = found.get("x-queue-type")
        if limit is None or (kind is not None and kind.known and kind.real in (None, "classic")):
            return None
        if limit.known and limit.real is None:
            return (
                f"queue {self.name!r} has no x-delivery-limit: each look puts its messages into another order "
                "(RabbitMQ 3), or drops them after 20 looks (RabbitMQ 4)"
            )
        if limit.known and limit.real is not None and int(limit.real) >= HARMLESS_LIMIT:
            return None
        return f"queue {self.name!r} drops a message after {limit.real or 'some'} returns, and each look returns it"

    async def browse(self, wanted: ErrorFilter, *, limit: int | None = None) -> list[ErrorEntry]:
        """The entries that match, oldest first, at most ``limit``. All of them stay, in their order.

        While it reads, the messages are hidden from other readers. All are read, whatever the limit: this keeps their
        order. AMQP lets a consumer hold 65,535 messages at most: what stands behind so many is not looked at, and
        the order of so many is not kept.

        :raises BrokerAway: the connection was lost; everything is back in the queue.
        :raises UnreadableMessages: unless ``unreadable`` is told.
        """

        async def look(reader: AnyReader) -> list[ErrorEntry]:
            found: list[ErrorEntry] = []
            while (limit is None or len(found) < limit) and (delivered := await reader.next()) is not None:
                entry = entry_of(delivered, self.source)
                if wanted.matches(entry):
                    found.append(entry)
            return found

        return await self._read(look)

    async def count(self, wanted: ErrorFilter) -> int:
        """How many entries match; otherwise like ``browse``, without keeping any of them in memory."""
        return (await self.tally(wanted, lambda _: None)).total()

    async def tally(self, wanted: ErrorFilter, kind: Callable[[ErrorEntry], K]) -> Counter[K]:
        """How many entries match, of each ``kind`` that is told of an entry; otherwise like ``count``."""

        async def look(reader: AnyReader) -> Counter[K]:
            found: Counter[K] = Counter()
            while (delivered := await reader.next()) is not None:
                if wanted.matches(entry := entry_of(delivered, self.source)):
                    found[kind(entry)] += 1
            return found

        return await self._read(look)

    async def requeue(
        self,
        wanted: ErrorFilter,
        *,
        limit: int | None = None,
        rate: float | None = None,
        any_origin: bool = False,
        lossy: bool = False,
        moved: Callable[[ErrorEntry], None] = lambda _: None,
    ) -> list[Stayed]:
        """Send the entries that match back to the queue they came from, oldest first, and return those that stayed.

        A message goes out with its properties and its id as they were (without one, it gets an id made from its
        content), without its diagnosis, with the time to live it had, as a persistent message. Only
        once the broker has confirmed and routed it, it
        leaves the error queue, and ``moved`` is called. Not kept: ``user_id``, with which the broker would refuse us,
        and the headers CC and BCC, which would send copies elsewhere.

        At most ``limit`` messages are tried, ``rate`` a second; never more than were there at the start, so those that
        fail again meanwhile are not chased. A message goes to another queue than ``source`` only with ``any_origin``:
        where it came from is a header, and anybody can write one (reliability S12). A message of which something had to
        be cut or changed when it failed, a header over 16 KiB say, goes only with ``lossy``.

        :raises BrokerAway: the connection was lost. What was not moved is still in the error queue.
        """
        size = BATCH if rate is None else max(1, min(BATCH, int(rate / 4)))
        stayed: list[Stayed] = []
        tried = 0
        publisher = ConfirmChannel(self._connection)

        async def send(reader: AnyReader) -> None:
            nonlocal tried
            stayed.clear()  # after a loss they come again
            left = reader.present if limit is None else limit - tried
            while left > 0 and (batch := await self._batch(reader, wanted, min(size, left, reader.most_at_once))):
                left -= len(batch)
                began = self._clock.monotonic()
                for delivered, entry, reason in await self._send(publisher, batch, any_origin=any_origin, lossy=lossy):
                    if reason is not None:
                        stayed.append(Stayed(entry, reason))
                        continue
                    await reader.ack(delivered)
                    tried += 1
                    moved(entry)
                if rate is not None and left > 0:
                    await self._clock.sleep(max(0.0, len(batch) / rate - (self._clock.monotonic() - began)))

        try:
            await self._read(send)
        finally:
            await publisher.close()
        return stayed

    async def purge(
        self, wanted: ErrorFilter, *, limit: int | None = None, removed: Callable[[ErrorEntry], None] = lambda _: None
    ) -> None:
        """Remove the entries that match for good, oldest first, at most ``limit`` and only what was there at the start.

        :raises BrokerAway: the connection was lost; some may be removed already.
        """
        done = 0

        async def take_out(reader: AnyReader) -> None:
            nonlocal done
            left = reader.present if limit is None else limit - done
            while left > 0 and (batch := await self._batch(reader, wanted, 1)):
                for delivered, entry in batch:
                    await reader.ack(delivered)
                    done += 1
                    removed(entry)
                left -= 1

        await self._read(take_out)

    async def _read(self, use: Callable[[AnyReader], Awaitable[T]]) -> T:
        """Use a reader of all messages; where the connection is lost over one, a reader of one message at a time."""
        try:
            async with reading(self._connection, self.name, self._clock) as reader:
                return await use(reader)
        except ReadingEnded as lost:
            await returned(self._connection, self.name, lost.present, self._clock)
            rotates = await self._is_quorum()
            async with one_by_one(
                self._connection, self.name, self._clock, rotates=rotates, good=lost.received
            ) as single:
                result = await use(single)
            if (unreadable := single.unreadable) is not None:
                self._unreadable(unreadable)
            return result

    async def _is_quorum(self) -> bool:
        try:
            told = await differences(self._connection, error_queue(self.source))
        except AccessRefused:  # may read but not configure; relmsg declares none but quorum queues
            return True
        return all(each.argument != "x-queue-type" for each in told)

    async def _batch(self, reader: AnyReader, wanted: ErrorFilter, size: int) -> list[tuple[Unacked, ErrorEntry]]:
        batch: list[tuple[Unacked, ErrorEntry]] = []
        while len(batch) < size and (delivered := await reader.next()) is not None:
            entry = entry_of(delivered, self.source)
            if wanted.matches(entry):
                batch.append((delivered, entry))
        return batch

    async def _send(
        self,
        publisher: ConfirmChannel,
        batch: list[tuple[Unacked, ErrorEntry]],
        *,
        any_origin: bool,
        lossy: bool,
    ) -> list[tuple[Unacked, ErrorEntry, str | None]]:
        """Publish a batch; for each message None, or why it must stay."""
        sent: list[tuple[Unacked, ErrorEntry, str | None]] = []
        publishes: list[tuple[Unacked, ErrorEntry, Publication]] = []
        for delivered, entry in batch:
            target = entry.original_queue or self.source
            if target != self.source and not any_origin:
                sent.append((delivered, entry, f"it says it came from queue {target!r}: give --any-origin to allow it"))
            elif (cut := _cut(entry)) and not lossy:
                sent.append((delivered, entry, f"it is not as it came ({cut}): give --lossy to send it all the same"))
            else:
                try:
                    publishes.append((delivered, entry, _publication(delivered, target)))
                except InvalidMessage as error:
                    sent.append((delivered, entry, str(error)))
        try:
            receipts = await publisher.publish([publish for *_, publish in publishes])
        except InvalidMessage as error:
            if len(batch) == 1:
                return [(*batch[0], str(error))]
            return [
                each
                for item in batch
                for each in await self._send(publisher, [item], any_origin=any_origin, lossy=lossy)
            ]  # one of them cannot be encoded, and nothing was sent
        for (delivered, entry, _), receipt in zip(publishes, receipts, strict=True):
            sent.append((delivered, entry, None if isinstance(receipt, Confirmed) else receipt.reason))
        return sent


def _raise(unreadable: Unreadable) -> None:
    raise UnreadableMessages(str(unreadable))


def _publication(delivered: Unacked, queue: str) -> Publication:
    """:raises InvalidMessage: it cannot be sent as it is."""
    came = delivered.message
    message_id = fitting_id(str(came.id) or _content_id(delivered))
    headers = {name: value for name, value in strip(came.headers).items() if name not in ROUTING}
    again = Basic.Properties(
        message_id=message_id,
        message_type=came.type,
        timestamp=came.timestamp,
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        correlation_id=None if MOVED_CORRELATION_ID in came.headers else came.correlation_id,
        reply_to=came.reply_to,
        app_id=came.source,
        expiration=_living(delivered.expiration) or _living(came.headers.get(names.ORIGINAL_EXPIRATION)),
        headers=headers or None,
        delivery_mode=PERSISTENT,
        priority=came.priority,
    )
    again.cluster_id = (delivered.remarks.cluster_id if delivered.remarks else None) or ""  # no argument for pamqp
    return copy_of(message_id, "", queue, again, delivered.body)


def _cut(entry: ErrorEntry) -> str | None:
    """What the message lost when it failed; None if nothing."""
    if cut := entry.headers.get(names.SANITISED):
        return text_of(cut)
    if entry.altered:
        return ", ".join(entry.altered)
    size = entry.headers.get(names.BODY_SIZE)
    if size is not None and size != len(entry.body):
        return f"its body had {size} bytes, the copy has {len(entry.body)}"
    return None


def _living(value: object) -> str | None:
    """A time to live, as it is, if the broker takes it. Anyone can write one into a header; the broker closes the
    channel over a value that it does not know, and with 0 the message would be dropped at once."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and 0 < int(value[:20]) <= MAX_EXPIRATION_MS:
        return value
    return None


def _content_id(delivered: Unacked) -> str:
    """An id for a message without one: a return could not be told from a confirm without it, and the two copies that a
    stop half way may leave must have the same."""
    came = delivered.message
    parts = (came.source, came.type, came.correlation_id, came.timestamp)
    digest = hashlib.sha256(repr(parts).encode(errors="replace") + delivered.body).hexdigest()
    return str(Message.id_for(f"sha256:{digest}"))
