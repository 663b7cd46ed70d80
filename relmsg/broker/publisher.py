"""Publishing without a database: confirmed, routed, or told why not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self, overload

from relmsg import arguments
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.envelope import MAX_BODY_BYTES, seal
from relmsg.broker.receipt import Confirmed, Receipt
from relmsg.broker.resending import publish_again_if_nacked
from relmsg.broker.wire import publication
from relmsg.clock import Clock, SystemClock
from relmsg.message import Message
from relmsg.retry import Retry, Seconds
from relmsg.security.encryption import Encryption
from relmsg.security.signing import Signing
from relmsg.settings import amqp_urls


class Publisher:
    """Sends messages to RabbitMQ and tells what became of each; there is no outbox behind it.

    Use it for messages that belong to no database transaction, or whose loss in a crash of *this* process is bearable:
    between your own work and the confirm nothing protects the message. Everything else belongs into an Outbox.

    Every message is persistent, mandatory and confirmed. A ``Nacked`` message is sent again by ``retry``; a
    ``Returned`` or ``Unknown`` one is not: only the caller knows whether sending again is worth it. Sending again
    *under the same id* is always safe for consumers that use an Inbox.

    :param url: ``amqp://`` or ``amqps://``; several hosts may stand in it, separated by commas.
    :param source: the name of this service, sent as ``app_id`` where a message names none.
    :param deadline: seconds to wait for the connection, the write and the confirm, each.
    :param signing: signs each message, so that receivers with ``Trust`` know it for this service's.
    :param encryption: encrypts each body before it is sent; only consumers with the key can read it.
    """

    def __init__(
        self,
        url: str,
        *,
        source: str | None = None,
        retry: Retry | int | None = None,
        deadline: Seconds = 30.0,
        window: int = 2000,
        max_body_bytes: int = MAX_BODY_BYTES,
        signing: Signing | None = None,
        encryption: Encryption | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        arguments.text("Publisher(url)", url, most=None)
        if source is not None:
            arguments.text("Publisher(source=…)", source)
        deadline = arguments.seconds("Publisher(deadline=…)", deadline, positive=True)
        arguments.whole("Publisher(window=…)", window, 1, 65_535, "unconfirmed messages")
        arguments.whole("Publisher(max_body_bytes=…)", max_body_bytes, 1, arguments.MOST_BODY_BYTES, "bytes")
        arguments.clock_and_chance("Publisher", clock, chance)
        default = Retry(attempts=5, base=0.1, cap=2.0, budget=deadline)
        self._retry = Retry.of("Publisher(retry=…)", retry, default)
        if signing is not None:
            arguments.instance("Publisher(signing=…)", signing, Signing, "a key is given as Signing(key)")
        if encryption is not None:
            arguments.instance("Publisher(encryption=…)", encryption, Encryption, "a key is given as Encryption(key)")
        self._seal = partial(seal, source=source, max_body_bytes=max_body_bytes, signing=signing, encryption=encryption)
        self._clock = clock or SystemClock()
        self._chance = chance
        self._connection = Connection(amqp_urls(url), name=source or "relmsg publisher", clock=self._clock)
        self._channel = ConfirmChannel(self._connection, window=window, deadline=deadline)

    async def __aenter__(self) -> Self:
        """Connect.

        :raises BrokerAway: no host answers.
        :raises AccessRefused: the login is refused.
        """
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
        await self._connection.close()

    @overload
    async def publish(self, message: Message, *, raises: Literal[True] = True) -> Confirmed: ...
    @overload
    async def publish(self, message: Message, *, raises: bool) -> Receipt: ...
    async def publish(self, message: Message, *, raises: bool = True) -> Receipt:
        """Send one message and wait for its receipt.

        Returns ``Confirmed``. Anything else is raised, or returned as a value with ``raises=False``.

        :raises InvalidMessage: the message can never be sent; nothing was sent.
        :raises UsageError: it is no ``Message``.
        :raises BrokerAway: there is no connection; nothing was sent.
        :raises Returned: no queue is bound for it; nothing was stored.
        :raises Nacked: the broker refused it, also after the retries.
        :raises Unknown: no answer; it may be stored or not. Send it again under the same id.
        """
        arguments.instance("publish(message)", message, Message)
        return (await self.publish_many([message], raises=raises))[0]

    @overload
    async def publish_many(
        self, messages: Iterable[Message], *, raises: Literal[True] = True
    ) -> Sequence[Confirmed]: ...
    @overload
    async def publish_many(self, messages: Iterable[Message], *, raises: bool) -> Sequence[Receipt]: ...
    async def publish_many(self, messages: Iterable[Message], *, raises: bool = True) -> Sequence[Receipt]:
        """Send many messages at once and wait for all their receipts, which come back in the same order.

        If not all are ``Confirmed``, the first one that is not is raised, with the receipts of all in its ``receipts``;
        with ``raises=False`` the receipts are returned, whatever they are.

        :raises InvalidMessage: one of the messages can never be sent; nothing was sent.
        :raises BrokerAway: there is no connection; nothing was sent.
        :raises Returned, Nacked, Unknown: as ``publish`` does; the others were sent all the same.
        """
        batch = arguments.several("publish_many(messages)", messages, Message)
        publishes = [publication(self._seal(message)) for message in batch]
        receipts = await publish_again_if_nacked(
            self._channel, publishes, retry=self._retry, clock=self._clock, chance=self._chance
        )
        failed = [receipt for receipt in receipts if not isinstance(receipt, Confirmed)]
        if raises and failed:
            failed[0].receipts = receipts
            if len(failed) > 1:
                failed[0].add_note(f"{len(failed)} of {len(receipts)} messages were not confirmed: see its receipts")
            raise failed[0]
        return receipts
