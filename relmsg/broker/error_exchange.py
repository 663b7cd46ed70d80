"""The error exchange: where a message goes, with its diagnosis, when it cannot be handled."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.declare import ensure_error_queue
from relmsg.broker.delivery import Delivery
from relmsg.broker.diagnosis import Failure, error_headers
from relmsg.broker.receipt import Confirmed
from relmsg.broker.wire import Publication
from relmsg.db.failures import named
from relmsg.errors import RelmsgError
from relmsg.exceptions import type_name
from relmsg.security.encryption import is_secret
from relmsg.topology import error_queue_name

log = logging.getLogger(__name__)


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
        self._connection = connection
        self._exchange = exchange
        self._channel = ConfirmChannel(connection)
        self._new_id = new_id
        self._now = now
        self._doubtful: set[str] = set()

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
        """
        copy = self.copy(delivery, failed, consumer, message_id)
        try:
            if delivery.queue in self._doubtful:
                await self.declare(delivery.queue)
            (receipt,) = await self._channel.publish([copy])
        except RelmsgError as error:
            self._doubtful.add(delivery.queue)
            return error
        if not isinstance(receipt, Confirmed):
            self._doubtful.add(delivery.queue)
            return receipt
        self._doubtful.discard(delivery.queue)
        log.warning(
            "message %s (%s) from %s is in the error queue %s (%s): %s",
            copy.message_id,
            delivery.message.type,
            delivery.queue,
            copy.routing_key,
            failed.reason,
            type_name(failed.error) if is_secret(delivery.message.headers, failed.error) else named(failed.error),
        )
        return receipt

    def copy(self, delivery: Delivery, failed: Failure, consumer: str, message_id: str) -> Publication:
        """The publish that carries a failed message to the error exchange. Without an id it gets one: returns are
        matched by it."""
        return delivery.copy(
            exchange=self._exchange,
            routing_key=error_queue_name(delivery.queue),
            message_id=message_id or self._new_id(),
            headers=error_headers(delivery, failed, consumer, self._now()),
        )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
