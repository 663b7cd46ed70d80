"""What a producer says to the coordinators: under its login, confirmed, and sent again while it is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from uuid import UUID

from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.envelope import Envelope
from relmsg.broker.receipt import Receipt
from relmsg.broker.resending import publish_again_if_nacked
from relmsg.broker.wire import Publication, publication
from relmsg.clock import Clock
from relmsg.half.protocol import COORDINATOR, GROUP, HALF_ID, VERB, Verb
from relmsg.message import HeaderValue, uuid7
from relmsg.retry import Retry
from relmsg.telemetry import trace_headers


class Sender:
    """Publishes to the coordinators' queue, persistent and mandatory. Only what was refused (a nack: the queue is full,
    or changes its leader) is sent again here, by ``retry``.

    :param user_id: the login of the connection, by which coordinators know the group; None leaves it out.
    """

    def __init__(
        self,
        channel: ConfirmChannel,
        *,
        group: str,
        source: str,
        user_id: str | None,
        retry: Retry,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.group = group
        self.source = source
        self.user_id = user_id
        self._channel = channel
        self._retry = retry
        self._clock = clock
        self._chance = chance

    async def send(self, publish: Publication) -> Receipt:
        """Publish it and wait for its receipt.

        :raises BrokerAway: there is no connection; nothing was sent.
        """
        (receipt,) = await publish_again_if_nacked(
            self._channel, [publish], retry=self._retry, clock=self._clock, chance=self._chance
        )
        return receipt

    async def say(
        self,
        verb: Verb,
        half_id: UUID,
        headers: Mapping[str, HeaderValue],
        *,
        message_id: str | None = None,
        reply_to: str | None = None,
    ) -> Receipt:
        """Publish a message of the protocol about a half message, under an id of its own, which is its correlation id.

        :raises BrokerAway: there is no connection; nothing was sent.
        """
        message_id = message_id or str(uuid7())
        named = {VERB: verb.value, HALF_ID: str(half_id), GROUP: self.group}
        envelope = Envelope(
            message_id,
            exchange="",
            routing_key=COORDINATOR,
            body=b"",
            headers={**trace_headers(), **headers, **named},
            source=self.source,
            correlation_id=message_id,
            reply_to=reply_to,
        )
        return await self.send(publication(envelope, user_id=self.user_id))
