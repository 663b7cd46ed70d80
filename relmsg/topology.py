"""Topology as code: the exchanges, queues and bindings a service needs, as plain values.

The defaults are the safe ones: quorum queues, an explicit delivery limit, dead-lettering at least once into an error
queue, and a full queue that refuses (a nack to the publisher) instead of dropping. ``None`` switches one of them off.
Nothing here talks to a broker: ``relmsg topology declare`` and ``relmsg topology check`` do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from relmsg.arguments import flag, named, refused, several, shown, whole
from relmsg.errors import UsageError

ERROR_EXCHANGE: Final = "relmsg.errors"
ERROR_SUFFIX: Final = ".errors"
# Stands for "<name of the queue>.errors"; it is replaced when the queue is made.
OWN_ERROR_KEY: Final = "<queue>.errors"

DELIVERY_LIMIT: Final = 20
MOST_DELIVERIES: Final = 2**31 - 1
# Whoever lists an error queue returns its messages. Without a limit a quorum queue puts returned messages at its back
# (reliability B2), and from RabbitMQ 4 on the default limit of 20 would drop them (B3).
ERROR_DELIVERY_LIMIT: Final = 1_000_000
REJECT_PUBLISH: Final = "reject-publish"
OVERFLOWS: Final = (REJECT_PUBLISH, "drop-head", "reject-publish-dlx", None)

QUEUE_TYPES: Final = ("quorum", "classic")
EXCHANGE_TYPES: Final = ("direct", "topic", "fanout", "headers")  # and those of plugins, which begin with x-

MAX_NAME_BYTES: Final = 255
MAX_EXCHANGE_NAME: Final = 127  # pamqp encodes no longer one in a declaration, nor any other characters than these
_NAME: Final = re.compile(r"[a-zA-Z0-9\-_.:@#,/+ ]+")
# Queue arguments that have a field of their own.
_OWNED: Final = {
    "x-queue-type": "type",
    "x-delivery-limit": "delivery_limit",
    "x-dead-letter-exchange": "dead_letter_exchange",
    "x-dead-letter-routing-key": "dead_letter_routing_key",
    "x-overflow": "overflow",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange. ``type``: direct, topic, fanout, headers, or a plugin's, such as ``x-consistent-hash``.

    :raises UsageError: the broker could never declare it.
    """

    name: str
    type: str = "topic"
    durable: bool = True
    internal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_name("exchange", self.name)
        for name in ("durable", "internal"):
            flag(f"{self}: {name}", getattr(self, name))
        if not isinstance(self.type, str) or (self.type not in EXCHANGE_TYPES and not self.type.startswith("x-")):
            raise UsageError(
                f"exchange {self.name!r}: there is no type {shown(self.type)}; "
                f"give {', '.join(EXCHANGE_TYPES)}, or a plugin's type, which begins with x-"
            )
        _check_arguments(f"exchange {self.name!r}", self.arguments)

    def __str__(self) -> str:
        return f"exchange {self.name!r}"


@dataclass(frozen=True, slots=True, init=False)
class Binding:
    """What leads from an exchange to a queue; either may be one that others declare, given by its name.

    Inside ``Queue(bindings=…)`` the queue is left out.

    :raises UsageError: the broker could never make it.
    """

    exchange: str
    queue: str
    routing_key: str
    arguments: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        exchange: str | Exchange,
        queue: str | Queue = "",
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        exchange_name, queue_name = named(exchange, Exchange), named(queue, Queue)
        if exchange_name == "":
            raise UsageError("a binding names an exchange: to the default exchange every queue is bound already")
        _check_name("exchange", exchange_name, reserved=True)
        if queue_name != "":
            _check_name("queue", queue_name, reserved=True)
        if not isinstance(routing_key, str):
            raise refused(f"binding to exchange {exchange_name!r}: routing_key", routing_key, "is a string")
        _set(
            self,
            exchange=exchange_name,
            queue=queue_name,
            routing_key=routing_key,
            arguments={} if arguments is None else arguments,
        )
        if _size(f"binding to exchange {exchange_name!r}: routing_key", routing_key) > MAX_NAME_BYTES:
            raise UsageError(f"{self}: the routing key is over {MAX_NAME_BYTES} bytes")
        _check_arguments(str(self), self.arguments)

    def __str__(self) -> str:
        return f"binding of queue {self.queue!r} to exchange {self.exchange!r} with routing key {self.routing_key!r}"


@dataclass(frozen=True, slots=True, init=False)
class Queue:
    """A durable queue. ``type``: quorum (the default) or classic.

    After ``delivery_limit`` returns a message is dead-lettered: this ends what a crashing consumer would repeat for
    ever. ``None`` leaves the limit to the broker: none before RabbitMQ 4, then 20; ``-1`` is none. Classic queues know
    no limit, and their dead-lettering can lose a message when the broker stops; on a quorum queue that refuses when
    full it is at least once.

    ``dead_letter_exchange``: the error exchange unless said otherwise; a Topology then brings the error queue along.
    ``None`` means that rejected messages are gone. ``dead_letter_routing_key``: ``<name>.errors``; ``None`` keeps the
    message's own. ``overflow`` matters once ``x-max-length`` is among the arguments or a policy sets it.

    ``arguments`` are further arguments for the broker. They cannot be changed while the queue lives: what a policy can
    set (lengths, times to live) is better set there.

    :raises UsageError: the broker could never declare it, or would not do what is asked here.
    """

    name: str
    type: str
    delivery_limit: int | None
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None
    overflow: str | None
    bindings: tuple[Binding, ...]
    arguments: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        name: str,
        type: str = "quorum",  # noqa: A002 - the word for it
        delivery_limit: int | None = DELIVERY_LIMIT,
        dead_letter_exchange: str | Exchange | None = ERROR_EXCHANGE,
        dead_letter_routing_key: str | None = OWN_ERROR_KEY,
        overflow: str | None = REJECT_PUBLISH,
        bindings: Sequence[Binding] | Binding = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        _check_name("queue", name)
        _set(
            self,
            name=name,
            type=type,
            delivery_limit=delivery_limit,
            dead_letter_exchange=named(dead_letter_exchange, Exchange),
            dead_letter_routing_key=dead_letter_routing_key,
            overflow=overflow,
            arguments={} if arguments is None else arguments,
        )
        if type not in QUEUE_TYPES:
            raise UsageError(f"{self}: there is no type {shown(type)} here; give {' or '.join(QUEUE_TYPES)}")
        if overflow not in OVERFLOWS:
            raise UsageError(f"{self}: overflow is {', '.join(filter(None, OVERFLOWS))} or None, not {shown(overflow)}")
        self._settle_limit()
        self._settle_dead_letters()
        _set(self, bindings=tuple(self._own(each) for each in several(f"{self}: bindings", bindings, Binding)))
        _check_arguments(str(self), self.arguments)
        for argument, own in _OWNED.items():
            if argument in self.arguments:
                raise UsageError(f"{self}: give {own}=… instead of the argument {argument}")

    def __str__(self) -> str:
        return f"queue {self.name!r}"

    @property
    def declaration(self) -> dict[str, Any]:
        """All arguments with which the broker is asked for this queue."""
        pairs: dict[str, Any] = {
            "x-queue-type": self.type,
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            "x-dead-letter-routing-key": self.dead_letter_routing_key,
            "x-overflow": self.overflow,
        }
        if self.type == "quorum" and self.dead_letter_exchange is not None and self.overflow == REJECT_PUBLISH:
            pairs["x-dead-letter-strategy"] = "at-least-once"  # with any other overflow RabbitMQ ignores it
        return {name: value for name, value in (pairs | dict(self.arguments)).items() if value is not None}

    def _settle_limit(self) -> None:
        limit = self.delivery_limit
        if self.type == "classic":
            if limit not in (None, DELIVERY_LIMIT):
                raise UsageError(f"{self}: classic queues know no delivery limit; use a quorum queue")
            object.__setattr__(self, "delivery_limit", None)
        elif limit is not None and (limit != -1 or not isinstance(limit, int)):
            whole(f"{self}: delivery_limit, 1 or more, or -1 for none, or None,", limit, 1, MOST_DELIVERIES)

    def _settle_dead_letters(self) -> None:
        exchange, key = self.dead_letter_exchange, self.dead_letter_routing_key
        if key == OWN_ERROR_KEY:
            key = None if exchange is None else self.name + ERROR_SUFFIX
            object.__setattr__(self, "dead_letter_routing_key", key)
        if exchange is None:
            if key is not None:
                raise UsageError(f"{self}: a dead_letter_routing_key needs a dead_letter_exchange")
            return
        if exchange != "":
            _check_name("exchange", exchange, reserved=True)
        if key is not None and not isinstance(key, str):
            raise refused(f"{self}: dead_letter_routing_key", key, "is a string or None")
        if exchange == ERROR_EXCHANGE:
            error_queue_name(self.name)
            if key is None:
                raise UsageError(f"{self}: dead-lettering to {ERROR_EXCHANGE} needs a dead_letter_routing_key")
        if key is not None and _size(f"{self}: dead_letter_routing_key", key) > MAX_NAME_BYTES:
            raise UsageError(f"{self}: the dead_letter_routing_key is over {MAX_NAME_BYTES} bytes")

    def _own(self, binding: Binding) -> Binding:
        if binding.queue not in ("", self.name):
            raise UsageError(f"{self}: a binding of queue {binding.queue!r} does not belong here")
        return replace(binding, queue=self.name)


@dataclass(frozen=True, slots=True, init=False)
class Topology:
    """The exchanges, queues and bindings of a service. What others declare may be bound to, but need not stand here.

    Each is given as a list, a tuple or any other sequence, or as a single one.

    :raises UsageError: two different things under one name, or a binding without its queue.
    """

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]

    def __init__(
        self,
        exchanges: Sequence[Exchange] | Exchange = (),
        queues: Sequence[Queue] | Queue = (),
        bindings: Sequence[Binding] | Binding = (),
    ) -> None:
        bindings = several("Topology(bindings=…)", bindings, Binding)
        for binding in bindings:
            if not binding.queue:
                raise UsageError(f"Topology: the binding to {binding.exchange!r} names no queue")
        _set(
            self,
            exchanges=_once(several("Topology(exchanges=…)", exchanges, Exchange)),
            queues=_once(several("Topology(queues=…)", queues, Queue)),
            bindings=bindings,
        )

    def whole(self) -> Topology:
        """This topology with everything it brings along: the error exchange and an error queue for each queue that
        dead-letters to it (unless they stand here already), and the bindings of the queues among ``bindings``.
        """
        exchanges = {each.name: each for each in self.exchanges}
        queues = {each.name: each for each in self.queues}
        bindings = [*self.bindings, *(binding for queue in self.queues for binding in queue.bindings)]
        for queue in self.queues:
            if queue.dead_letter_exchange != ERROR_EXCHANGE:
                continue
            exchanges.setdefault(ERROR_EXCHANGE, error_exchange())
            errors = error_queue(queue.name)
            queues.setdefault(errors.name, errors)
            # By its own name the consumer finds it, by the dead-letter key the broker does; mostly they are the same.
            keys = (errors.name, queue.dead_letter_routing_key or errors.name)
            bindings.extend(Binding(ERROR_EXCHANGE, errors.name, key) for key in keys)
        plain = tuple(replace(each, bindings=()) for each in queues.values())
        return Topology(tuple(exchanges.values()), plain, _distinct(bindings))


def error_exchange(name: str = ERROR_EXCHANGE) -> Exchange:
    """The exchange for messages that cannot be handled: direct, durable."""
    return Exchange(name, type="direct")


def error_queue_name(queue: str) -> str:
    """The name of a queue's error queue, which is also its routing key: ``<queue>.errors``.

    :raises UsageError: it would be too long.
    """
    name = queue + ERROR_SUFFIX
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UsageError(
            f"queue {queue[:40]!r}…: its error queue's name, with {ERROR_SUFFIX} behind it, would be over "
            f"{MAX_NAME_BYTES} bytes: give a shorter name"
        )
    return name


def error_queue(queue: str) -> Queue:
    """Where the messages of a queue wait that could not be handled.

    A durable quorum queue that refuses when full and dead-letters nowhere: only an operator takes messages out. Its
    delivery limit is so large that looking at the messages neither reorders nor drops them.
    """
    return Queue(error_queue_name(queue), delivery_limit=ERROR_DELIVERY_LIMIT, dead_letter_exchange=None)


T = TypeVar("T", Exchange, Queue)


def _once(things: tuple[T, ...]) -> tuple[T, ...]:
    seen: dict[str, T] = {}
    for thing in things:
        if seen.setdefault(thing.name, thing) != thing:
            raise UsageError(f"Topology: {thing} stands here twice, and not alike")
    return tuple(seen.values())


def _set(frozen: Any, **values: Any) -> None:
    """Give a frozen value its fields, while it is made."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _distinct(bindings: Iterable[Binding]) -> tuple[Binding, ...]:
    distinct: list[Binding] = []
    for binding in bindings:
        if binding not in distinct:
            distinct.append(binding)
    return tuple(distinct)


def checked_name(kind: str, name: Any, *, reserved: bool = False) -> str:
    """The name of a queue or exchange, if there can be one; ``reserved``: also one that only RabbitMQ may declare.

    :raises UsageError: it is no string, is too long, or has characters that AMQP libraries do not send.
    """
    _check_name(kind, name, reserved=reserved)
    return str(name)


def _check_name(kind: str, name: str, *, reserved: bool = False) -> None:
    if not isinstance(name, str) or not name:
        raise UsageError(f"{kind} names are non-empty strings, not {shown(name)}")
    short = name if len(name) <= 60 else name[:60] + "…"
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise UsageError(f"{kind} {short!r}: the name is over {MAX_NAME_BYTES} bytes, more than AMQP carries")
    if kind == "exchange" and len(name) > MAX_EXCHANGE_NAME:
        raise UsageError(f"exchange {short!r}: the name is over {MAX_EXCHANGE_NAME} characters")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{kind} {short!r}: names are made of ASCII letters, digits, spaces and -_.:@#,/+")
    if not reserved and name.startswith("amq."):
        raise UsageError(f"{kind} {short!r}: names that begin with amq. belong to RabbitMQ")


def _check_arguments(owner: str, arguments: Mapping[str, Any]) -> None:
    if not isinstance(arguments, Mapping):
        raise UsageError(f"{owner}: arguments are a mapping of names to values, not {type(arguments).__name__}")
    for name, value in arguments.items():
        if not isinstance(name, str) or not name or _size(f"{owner}: the name of an argument", name) > 128:
            raise UsageError(f"{owner}: names of arguments are strings of 1 to 128 bytes, not {shown(name)}")
        if not isinstance(value, str | bool | int) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            raise UsageError(f"{owner}: argument {name} is str, bool or int (64 bit), not {shown(value)}")
        if isinstance(value, str):
            _size(f"{owner}: argument {name}", value)


def _size(name: str, value: str) -> int:
    """How many bytes a text takes.

    :raises UsageError: it has lone surrogates, which nothing can send.
    """
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise refused(name, value, "is valid Unicode") from None
