"""The error exchange: where a message goes, with its diagnosis, when it cannot be handled."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeGuard

from relmsg.broker import error_headers as names
from relmsg.broker.confirm import ConfirmChannel, publish_alone
from relmsg.broker.connection import Connection
from relmsg.broker.cut_copy import REFUSALS, SMALL_HEADERS, smaller_copies
from relmsg.broker.declare import ensure_error_queue
from relmsg.broker.delivery import Delivery
from relmsg.broker.diagnosis import Failure, error_headers
from relmsg.broker.error_text import line_for
from relmsg.broker.headers import MAX_BYTES
from relmsg.broker.receipt import Confirmed, Receipt, Unknown
from relmsg.broker.wire import Publication
from relmsg.db.failures import named
from relmsg.errors import RelmsgError
from relmsg.runtime.bounded_log import BoundedLog
from relmsg.topology import error_queue_name

log = logging.getLogger(__name__)

OTHERS_BYTES = 2048  # seven short strings, and some numbers


class CopyRefused(RelmsgError):
    """The broker takes no error copy of a message, not even one without its body."""


def _is_refusal(receipt: Receipt) -> TypeGuard[Unknown]:
    return isinstance(receipt, Unknown) and receipt.reply_code in REFUSALS


class ErrorExchange:
    """Copies failed messages to ``<queue>.errors`` through one direct exchange, and knows when they are safe there.

    It publishes on a connection of its own: RabbitMQ blocks publishing connections in an alarm, and a consumer that
    shared one could not ack any more (reliability B17).
    """

    def __init__(
        self,
        connection: Connection,
        exchange: str,
        *,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lines = BoundedLog(log)
        self._connection = connection
        self._exchange = exchange
        self._channel = ConfirmChannel(connection)
        self._new_id = new_id
        self._now = now
        self._doubtful: set[str] = set()
        self._alone = asyncio.Lock()

    async def declare(self, queue: str) -> None:
        """Make sure that the exchange and the error queue of ``queue`` exist.

        :raises BrokerAway, AccessRefused, TopologyMismatch: as the broker answers.
        """
        await ensure_error_queue(self._connection, queue, self._exchange)

    async def take(
        self, delivery: Delivery, failed: Failure, consumer: str, message_id: str
    ) -> Confirmed | RelmsgError:
        """Publish the copy, once, and wait for the broker's word on it.

        Only after Confirmed may the original be acked. Everything else tells why the copy is not known to be there: the
        error queue may have been deleted, or be full, or the broker is away. The next call declares the queue again
        before it publishes; a copy whose confirm was lost may then be there twice, under one message id.

        A copy that the broker refuses because of what it is, as one that is too large, is sent again alone, and then
        smaller and smaller (``smaller_copies``); so is one that cannot be made. CopyRefused: not even the smallest one
        is taken.
        """
        try:
            if delivery.queue in self._doubtful:
                await self.declare(delivery.queue)
            receipt, copy = await self._published(delivery, failed, consumer, message_id or self._new_id())
        except RelmsgError as error:
            if not isinstance(error, CopyRefused):
                self._doubtful.add(delivery.queue)
            return error
        if not isinstance(receipt, Confirmed):
            self._doubtful.add(delivery.queue)
            return receipt
        self._doubtful.discard(delivery.queue)
        self._lines.warning(
            "message %s (%s) from %s is in the error queue %s (%s): %s",
            copy.message_id,
            delivery.message.type,
            delivery.queue,
            copy.routing_key,
            failed.reason,
            line_for(delivery.message.headers, failed.error),
            about=f"from {delivery.queue}: {failed.reason}",
        )
        return receipt

    async def _published(
        self, delivery: Delivery, failed: Failure, consumer: str, message_id: str
    ) -> tuple[Receipt, Publication]:
        """Send the copy as it should be; alone if that is refused, for others may have been the reason; then smaller.

        :raises CopyRefused: the broker takes none of them.
        """
        refused: Exception
        try:
            copy = self.copy(delivery, failed, consumer, message_id)
        except Exception as error:  # noqa: BLE001 - it cannot be sent again as it is, or a fault of ours
            refused = error
        else:
            if not self._alone.locked():
                (receipt,) = await self._channel.publish([copy])
                if not _is_refusal(receipt):
                    return receipt, copy
            async with self._alone:  # some refusals end the connection, and with it what others have on their way
                receipt = await publish_alone(self._connection, copy)
            if not _is_refusal(receipt):
                return receipt, copy
            refused = receipt

        def headers(most: int) -> dict[str, Any]:
            return error_headers(delivery, failed, consumer, self._now(), most)

        minimal = {
            names.REASON: failed.reason,
            names.ATTEMPTS: failed.attempts,
            names.FAILED_AT: self._now().isoformat(timespec="milliseconds"),
            names.ORIGINAL_QUEUE: delivery.queue,
        }
        key = error_queue_name(delivery.queue)
        for make in smaller_copies(delivery, self._exchange, key, message_id, headers, minimal):
            self._lines.warning(
                "message %s from %s: the error copy was refused: %s", message_id, delivery.queue, named(refused)
            )
            try:
                copy = make()
            except Exception as error:  # noqa: BLE001 - as above
                refused = error
                continue
            async with self._alone:
                receipt = await publish_alone(self._connection, copy)
            if not _is_refusal(receipt):
                return receipt, copy
            refused = receipt
        raise CopyRefused(f"the broker takes no error copy of message {message_id}: {named(refused)}") from refused

    def copy(self, delivery: Delivery, failed: Failure, consumer: str, message_id: str) -> Publication:
        """The publish that carries a failed message to the error exchange. Without an id it gets one: returns are
        matched by it."""
        return delivery.copy(
            exchange=self._exchange,
            routing_key=error_queue_name(delivery.queue),
            message_id=message_id or self._new_id(),
            headers=error_headers(delivery, failed, consumer, self._now(), self._room()),
        )

    def _room(self) -> int:
        """How large the headers may be: they stand in one frame, beside the other properties."""
        frame = self._connection.frame_max
        return MAX_BYTES if not frame else max(SMALL_HEADERS, min(MAX_BYTES, frame - OTHERS_BYTES))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
