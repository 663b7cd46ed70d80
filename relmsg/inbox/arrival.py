"""A delivery that has come in, and what is known of it before anything is done."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import copy_context

from relmsg.broker.subscriber import Delivery
from relmsg.db.failures import named
from relmsg.errors import Undecodable, Unhandleable
from relmsg.inbox.attempt import Task
from relmsg.inbox.handle.content_encoding import decompressed
from relmsg.inbox.handle.limits import Limits
from relmsg.inbox.handler import Handler
from relmsg.inbox.identity import Identity, MissingId, identify
from relmsg.inbox.outcome import REASONS, Failed, Reason, readable
from relmsg.inbox.registry import Registry
from relmsg.security.encryption import Encryption
from relmsg.security.received import opened
from relmsg.security.trust import Trust

DEFAULT_LIMITS = Limits()


class Arrival:
    """A delivery on its way through the consumer.

    ``task`` is what is to be done, ``refused`` why nothing can be. ``alone`` says that it must not share a transaction:
    nothing can be done with it, it has been delivered before, or a group failed with it.
    """

    __slots__ = ("alone", "consumer", "delivery", "handler", "identity", "key", "refused", "task")

    def __init__(self, delivery: Delivery, consumer: str) -> None:
        self.delivery = delivery
        self.consumer = consumer
        self.handler: Handler | None = None
        self.identity: Identity | None = None
        self.task: Task | None = None
        self.refused: Failed | None = None
        message = delivery.message
        key = message.ordering_key
        self.key: Hashable | None = None if key is None else (delivery.queue, key)
        self.alone = message.redelivered


def arrived(
    delivery: Delivery,
    name: str,
    registry: Registry,
    missing_id: MissingId,
    trust: Trust | None = None,
    encryption: Encryption | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Arrival:
    """Find the handler of a delivery, its identity, and what the handler will be given. Raises nothing: what goes wrong
    is why the delivery is refused."""
    arrival = Arrival(delivery, name)
    message = delivery.message
    otherwise: Reason = "internal_error"
    try:
        if delivery.fault is not None:
            raise Undecodable(f"a property or header cannot be read: {named(delivery.fault)}") from delivery.fault
        limits.check_headers(message)
        if trust is not None:
            trust.check(message, delivery.user_id)
        if message.headers:
            message = opened(message, encryption)
        handler = arrival.handler = registry.find(delivery.queue, message.type)
        arrival.consumer = handler.consumer
        identity = arrival.identity = identify(message, handler.consumer, missing_id)
        if message.content_encoding:
            message = decompressed(message, limits.body_bytes)
        limits.check_decoded(handler, message)
        event = None
        if handler.parameters.decode is not None:
            otherwise = "undecodable"  # a model's own validator may raise anything, a Rust panic as well
            event = copy_context().run(handler.decode, message)  # ... and set context variables
        arrival.task = Task(handler, message, identity, event, message.redelivered)
    except Unhandleable as error:
        arrival.refused = Failed(error, REASONS.get(type(error), otherwise))
    except BaseException as error:  # noqa: BLE001 - one message must not cost the others that came with it
        arrival.refused = Failed(readable(error), otherwise)
    if arrival.task is None:
        arrival.alone = True
    return arrival
