"""A line: one channel in confirm mode, and which of the two ways of writing it has."""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import version
from typing import Protocol
from uuid import uuid4

from relmsg.broker.batch import Batch
from relmsg.broker.bulk import BulkLine
from relmsg.broker.connection import Connection
from relmsg.broker.envelope import Envelope
from relmsg.broker.plain import PlainLine
from relmsg.broker.receipt import Returned, Unknown
from relmsg.broker.wire import publication
from relmsg.errors import BrokerAway, RelmsgError

log = logging.getLogger(__name__)

OPENINGS = 3
# What also proves that the broker has understood our frames: this user may not write to the default exchange, or the
# message is larger than its max_message_size, which it finds out when all frames of a body have come.
UNDERSTOOD = (403, 406)


class Line(Protocol):
    """One channel in confirm mode, from its opening to its loss.

    No two messages under way on it carry the same id: a return names its message by nothing else (reliability P2).
    """

    @property
    def is_open(self) -> bool:
        """Whether a batch can be written."""
        ...

    async def write(self, batch: Batch) -> None:
        """Write all of a batch, in its order; its receipts come by and by.

        Of two batches at once the frames may alternate, whole messages each: what must keep its order belongs into one
        batch, or the second one is written when the first is confirmed.

        Whatever ends the line gives up every batch that is under way on it.

        :raises Exception: the line broke while it wrote; the caller gives the batch up.
        """
        ...

    async def close(self) -> None:
        """Close the channel. Batches under way are given up."""
        ...


async def open_line(connection: Connection, *, within: float) -> Line:
    """Open a channel and choose how to write to it.

    Bulk publishing rests on how aiormq uses its socket, so on each connection it first has to prove itself: messages
    for a queue that does not exist, one with a body of two frames, must come back as returned, each with its own id.
    Where they do not, and where ``Connection(bulk=False)`` or ``RELMSG_BULK=off`` says so, aiormq's ``basic_publish``
    does the work.

    :raises BrokerAway: there is no connection in time, or it is blocked by the broker.
    :raises AccessRefused, BrokerRefused: as the broker answers.
    """
    has_failed = False
    for _ in range(OPENINGS):
        channel = await connection.channel(confirms=True, within=within)
        tap = connection.tap
        if tap is None or tap.trusted is False or has_failed:
            return PlainLine(channel)
        line = BulkLine(channel, tap, connection.frame_max)
        if tap.trusted is None:
            tap.trusted = await _proves_itself(line, connection, within)
            if not tap.trusted:
                has_failed = True  # remembered here as well: the broker may close the connection for it
                log.warning(
                    "bulk publishing does not work with this aiormq (%s); publishing one by one, which is slower",
                    version("aiormq"),
                )
        if tap.trusted and line.is_open:
            return line
        await line.close()
    raise BrokerAway("RabbitMQ closes every channel that is opened for publishing")


async def _proves_itself(line: BulkLine, connection: Connection, within: float) -> bool:
    """Whether bulk publishing does what it should on this connection.

    :raises BrokerAway: the broker answers to nothing, whoever asks.
    """
    nowhere = f"relmsg.self-test.{uuid4()}"
    bodies = (b"", b"\0" * connection.frame_max)  # none, and one that takes two frames
    publishes = [
        publication(Envelope(message_id=str(uuid4()), exchange="", routing_key=nowhere, body=body, headers={}))
        for body in bodies
    ]
    batch = Batch(publishes, ended=lambda _: None, reach=lambda _: None)
    try:
        async with asyncio.timeout(within):
            await line.write(batch)
            receipts = await batch.answered()
    except TimeoutError:
        try:
            await (await connection.channel(within=within)).close()
        except RelmsgError as error:
            connection.abort()
            raise BrokerAway(f"RabbitMQ did not answer within {within:g} s") from error
        return False  # it answers aiormq, but not us
    for publish, receipt in zip(publishes, receipts, strict=True):
        if isinstance(receipt, Unknown) and receipt.reply_code in UNDERSTOOD:
            return True
        if isinstance(receipt, Unknown):
            raise BrokerAway(f"the channel was closed: {receipt.cause}")
        if not isinstance(receipt, Returned) or receipt.message_id != publish.message_id:
            return False
    return True
