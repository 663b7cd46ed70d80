"""A channel in confirm mode: a batch of publishes goes in, one receipt for each comes out.

Two publishes under one message id are never in flight together: the second waits until the first is answered. A return
names its message by nothing but the id, so it could be given the verdict of the other one (reliability P2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from relmsg.broker.answer import answer, really_cancelled
from relmsg.broker.batch import Batch
from relmsg.broker.connection import Connection
from relmsg.broker.line import Line, open_line
from relmsg.broker.receipt import Receipt
from relmsg.broker.wire import Publication
from relmsg.errors import BrokerAway, RelmsgError
from relmsg.failpoint import FailpointReached

PIECES = 4  # of a window: while one is being answered the next are written, so that the broker never waits


class ConfirmChannel:
    """Publishes batches on one channel of a connection and tells what became of each message.

    Holds: every publish gets exactly one receipt, its own. Confirmed is given only for a message that the broker has
    acked and not returned. When the channel or the connection is lost, or ``deadline`` seconds pass without an answer,
    everything unanswered becomes Unknown; after a missed deadline the connection is cut as well.

    After a nack the channel is replaced as soon as nothing is under way on it: RabbitMQ remembers for a channel that a
    quorum queue was full, and goes on refusing what it sends there after the limit was lifted, until a message leaves
    the queue.

    At most ``window`` messages are unconfirmed at a time; a batch larger than that is sent piece by piece. Several
    batches may be under way at once.
    """

    def __init__(self, connection: Connection, *, window: int = 2000, deadline: float = 30.0) -> None:
        self._connection = connection
        self._window = window
        self._piece = max(1, window // PIECES)
        self._deadline = deadline
        self._line: Line | None = None
        self._opening = asyncio.Lock()
        self._in_flight: set[str] = set()
        self._under_way: set[Batch] = set()
        self._answered = asyncio.Event()
        self._has_nacked = False

    @property
    def unconfirmed(self) -> int:
        """How many messages are sent and not yet answered."""
        return len(self._in_flight)

    async def publish(self, publishes: Sequence[Publication]) -> list[Receipt]:
        """Send a batch and wait for all its receipts, in the order of ``publishes``.

        The connection is waited for once: if it does not come back, the rest is Unknown without being sent.

        :raises BrokerAway: nothing at all could be sent.
        """
        batches: list[Batch] = []
        for start in range(0, len(publishes), self._piece):
            piece = publishes[start : start + self._piece]
            if len({publish.message_id for publish in piece}) < len(piece):
                # One after another, so that the second of two with the same id waits for the first.
                for publish in piece:
                    batches.append(await self._send_once_free([publish], after=batches))
            else:
                batches.append(await self._send_once_free(piece, after=batches))
        return [receipt for batch in batches for receipt in await batch.answered()]

    async def close(self) -> None:
        """Close the channel; what is still unanswered becomes Unknown."""
        await self._close_line()
        for batch in list(self._under_way):
            batch.give_up(BrokerAway("the channel was closed before the broker answered"))

    async def _close_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with suppress(Exception):
                await answer(line.close(), within=5.0)

    async def _send_once_free(self, publishes: Sequence[Publication], *, after: Sequence[Batch]) -> Batch:
        """Send once there is room for all, and none of their ids is under way; ``after`` are the pieces before it."""
        ids = {publish.message_id for publish in publishes}
        while len(ids) + len(self._in_flight) > self._window or not ids.isdisjoint(self._in_flight):
            self._answered.clear()
            await self._answered.wait()
        self._in_flight |= ids
        return await self._send(publishes, after)

    def _release(self, publishes: Sequence[Publication]) -> None:
        self._in_flight.difference_update([publish.message_id for publish in publishes])
        self._answered.set()

    def _end(self, batch: Batch) -> None:
        self._has_nacked |= batch.has_nacked
        self._under_way.discard(batch)
        self._release(batch.publications)

    async def _open(self) -> Line:
        async with self._opening:
            if self._has_nacked and len(self._under_way) == 1:  # the one that is about to be written
                await self._close_line()
            if self._line is None or not self._line.is_open or not self._connection.is_up:
                self._line = await open_line(self._connection, within=min(10.0, self._deadline))
                self._has_nacked = False
            await self._connection.require_unblocked()
            return self._line

    async def _send(self, publishes: Sequence[Publication], after: Sequence[Batch]) -> Batch:
        batch = Batch(publishes, self._end)
        self._under_way.add(batch)
        if after and (reason := after[-1].unsent_because) is not None:
            batch.not_sent(reason)
            return batch
        try:
            line = await self._open()
        except BaseException as error:
            if not after or not isinstance(error, RelmsgError):
                self._end(batch)
                raise
            batch.not_sent(error)
            return batch
        try:
            async with asyncio.timeout(self._deadline):
                await line.write(batch)
        except TimeoutError as error:
            self._connection.abort()
            batch.give_up(error)
        except asyncio.CancelledError as error:
            if really_cancelled():
                batch.leave(error)
                raise
            batch.give_up(error)
        except FailpointReached:
            raise
        except Exception as error:  # noqa: BLE001 - whatever broke the write, the verdict is the same: unknown
            batch.give_up(error)
        finally:
            batch.end_within(self._deadline, self._connection.abort)
        return batch


async def publish_alone(connection: Connection, publish: Publication, *, deadline: float = 30.0) -> Receipt:
    """Send one message on a channel of its own: if the broker closes it, this message alone was the reason.

    :raises BrokerAway: it could not be sent.
    """
    channel = ConfirmChannel(connection, deadline=deadline)
    try:
        return (await channel.publish([publish]))[0]
    finally:
        await channel.close()
