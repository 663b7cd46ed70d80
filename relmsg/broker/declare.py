"""Bringing a topology into the broker, and telling what stands there instead.

RabbitMQ closes the channel with every refusal, so each question gets a channel of its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from aiormq import Channel

from relmsg.broker import management
from relmsg.broker.answer import answer
from relmsg.broker.connection import Connection
from relmsg.broker.mismatch import TYPE_ARGUMENTS, Difference, asked_for, difference, in_place, phrase
from relmsg.errors import AccessRefused, BrokerRefused, RelmsgError, TopologyMismatch, UsageError
from relmsg.topology import ERROR_EXCHANGE, Binding, Exchange, Queue, Topology, error_exchange, error_queue

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

ANSWER_WITHIN = 10.0  # seconds
FLAGS = ("type", "durable", "auto_delete", "exclusive", "internal")  # what is no argument in AMQP's sense
NOT_FOUND, LOCKED, PRECONDITION_FAILED, COMMAND_INVALID = 404, 405, 406, 503


@dataclass(frozen=True, slots=True)
class Differences:
    """What differs between a topology and the broker: a line for each difference, and what could not be looked at."""

    lines: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


async def declare(connection: Connection, topology: Topology) -> None:
    """Bring a topology into the broker, with the error exchange and the error queues that belong to it.

    Doing it again changes nothing. Nothing is ever deleted or replaced. What differs is left as it is, all else is
    declared, and then everything that differs is told in one error.

    :raises TopologyMismatch: something of that name stands there already and differs; the text says in what.
    :raises UsageError: the broker knows no such argument or type.
    :raises AccessRefused: the user may not configure this, or not write to or read from it.
    :raises BrokerAway: no answer.
    """
    whole = topology.whole()
    found: list[TopologyMismatch] = []
    for thing in _things(whole):
        try:
            await _declare_one(connection, thing)
        except TopologyMismatch as mismatch:
            found.append(mismatch)
    for binding in whole.bindings:
        try:
            await _bind(connection, binding)
        except TopologyMismatch as mismatch:
            found.append(mismatch)
    if len(found) == 1:
        raise found[0]
    if found:
        told = "; ".join(map(str, found))
        raise TopologyMismatch(f"{len(found)} things differ: {told}") from ExceptionGroup("what differs", found)


async def _declare_one(connection: Connection, thing: Exchange | Queue) -> None:
    try:
        await _ask(connection, _declare, thing, asked_for(thing))
    except BrokerRefused as error:
        if error.reply_code == PRECONDITION_FAILED:
            raise _mismatch(thing, await differences(connection, thing)) from error
        raise _refusal(thing, error) from error


async def check(connection: Connection, topology: Topology, management_url: str | None = None) -> Differences:
    """Compare a topology, with all it brings along, with the broker. Changes nothing; what else is there is not told.

    What is there is asked for once more with the arguments wanted: the broker then either agrees or names a difference.
    Bindings cannot be seen over AMQP: they are looked up through the management API at ``management_url``, such as
    ``http://user:password@host:15672``, and without it they are in ``unchecked``. Arguments that no part of RabbitMQ
    knows, and policies, are not compared. Should something be deleted in the very moment between the two questions,
    the second one makes it again.

    :raises AccessRefused: the user may not configure these (which asking takes), or may not use the management API.
    :raises BrokerAway: no answer, from AMQP or from the management API.
    """
    whole = topology.whole()
    lines: list[str] = []
    for thing in _things(whole):
        if not await _exists(connection, thing):
            lines.append(f"{thing} is missing")
        else:
            lines += [f"{thing}: {phrase(thing, each)}" for each in await differences(connection, thing)]
    if management_url is None:
        return Differences(tuple(lines), tuple(map(str, whole.bindings)))
    vhost = await virtual_host(connection)
    lines += [
        f"{binding} is missing"
        for binding in whole.bindings
        if not await management.has_binding(management_url, vhost, binding, within=ANSWER_WITHIN)
    ]
    return Differences(tuple(lines))


async def ensure_error_queue(connection: Connection, queue: str, exchange: str = ERROR_EXCHANGE) -> None:
    """Have an error queue for ``queue``, bound to the error exchange. What is there already is taken as it is, whatever
    its arguments; so is a missing permission to bind, where both stand already and may be bound.

    :raises UsageError: the names cannot be declared.
    :raises AccessRefused: something is missing, and the user may not declare it.
    :raises BrokerAway: no answer.
    """
    errors = error_queue(queue)
    found = True
    for thing in _things(Topology((error_exchange(exchange),), (errors,))):
        if not await _exists(connection, thing):
            found = False
            await _ask(connection, _declare, thing, asked_for(thing))
    try:
        await _bind(connection, Binding(exchange, errors.name, errors.name))
    except AccessRefused as error:
        if not found:
            raise
        log.warning("cannot see to the binding of %s to exchange %r: %s", errors, exchange, error)


async def ensure_queue(connection: Connection, queue: Queue) -> int:
    """Have this queue; how many messages are ready in it. What is there already is taken as it is, whatever its
    arguments, and takes no permission to configure.

    :raises UsageError: the broker knows no such argument.
    :raises AccessRefused: it is missing, and the user may not declare it.
    :raises BrokerAway: no answer.
    """
    try:
        return await _ask(connection, _ready, queue)
    except BrokerRefused as error:
        if error.reply_code != NOT_FOUND:
            raise
    try:
        await _ask(connection, _declare, queue, asked_for(queue))
    except BrokerRefused as error:
        if error.reply_code == PRECONDITION_FAILED:  # somebody has just declared another one of that name
            return await _ask(connection, _ready, queue)
        raise _refusal(queue, error) from error
    return 0


async def ready_in(connection: Connection, queue: str) -> int | None:
    """How many messages are ready in a queue; None if there is none of this name. Nothing is declared.

    :raises UsageError: relmsg reads no queue of this name.
    :raises AccessRefused: the user may not see it.
    :raises BrokerAway: no answer.
    """
    try:
        return await _ask(connection, _ready, Queue(queue, dead_letter_exchange=None))
    except BrokerRefused as error:
        if error.reply_code != NOT_FOUND:
            raise
        return None


async def virtual_host(connection: Connection) -> str:
    """The virtual host that the connection is in.

    :raises BrokerAway: there is no connection.
    """
    return await _ask(connection, _vhost)


async def queue_exists(connection: Connection, queue: str) -> bool:
    """Whether there is a queue of this name; nothing is declared.

    :raises UsageError: no queue can have this name.
    :raises AccessRefused: the user may not see it.
    :raises BrokerAway: no answer.
    """
    return await _exists(connection, Queue(queue, dead_letter_exchange=None))


async def _exists(connection: Connection, thing: Exchange | Queue) -> bool:
    try:
        await _ask(connection, _declare_passively, thing)
    except BrokerRefused as error:
        if error.reply_code == LOCKED:  # it belongs exclusively to another connection
            return True
        if error.reply_code != NOT_FOUND:
            raise
        return False
    return True


async def _bind(connection: Connection, binding: Binding) -> None:
    try:
        await _ask(connection, _bind_queue, binding)
    except BrokerRefused as error:
        if error.reply_code == NOT_FOUND:
            raise TopologyMismatch(f"{binding}: {_words(error)}; declare it first") from error
        raise TopologyMismatch(f"{binding}: {_words(error)}") from error


async def differences(connection: Connection, thing: Exchange | Queue) -> list[Difference]:
    """All differences of a thing that is there: each one told is put right in the question, and it is asked again.

    Where the type of a queue differs, or RabbitMQ's answer was cut short, the list may end early.
    """
    found: dict[str, Difference] = {}
    corrected: dict[str, Any] = {}
    while True:
        try:
            await _ask(connection, _declare, thing, asked_for(thing) | corrected)
        except BrokerRefused as error:
            told = difference(error.reply_text) if error.reply_code == PRECONDITION_FAILED else None
            if told is None or told.argument in corrected:
                if not found:
                    raise _refusal(thing, error) from error
                break  # with what is there put in, the question makes no sense to RabbitMQ
            found[told.argument] = told
            if not told.known or told.argument == "x-queue-type":
                break  # a queue of another type cannot be compared further
            corrected[told.argument] = in_place(thing, told)
        else:
            break
    return sorted(found.values(), key=lambda each: each.argument not in TYPE_ARGUMENTS)


def _mismatch(thing: Exchange | Queue, found: list[Difference]) -> TopologyMismatch:
    kind = "queue" if isinstance(thing, Queue) else "exchange"
    told = "; ".join(phrase(thing, each) for each in found)
    return TopologyMismatch(f"{thing}: {told}; delete the {kind} or ask for what is there")


def _refusal(thing: Exchange | Queue, error: BrokerRefused) -> RelmsgError:
    """The error for a refusal that tells no difference."""
    if error.reply_code in (PRECONDITION_FAILED, COMMAND_INVALID):  # the latter, up to RabbitMQ 3, ends the connection
        hint = "; is its plugin enabled?" if "unknown exchange type" in error.reply_text else ""
        return UsageError(f"{thing}: RabbitMQ refuses it: {_words(error)}{hint}")
    return TopologyMismatch(f"{thing}: {_words(error)}")


def _words(error: BrokerRefused) -> str:
    """RabbitMQ's own words, without their capitals: ``NOT_FOUND - no queue 'q' in vhost '/'``."""
    return re.sub(r"^[A-Z_]+ - ", "", error.reply_text)


def _things(topology: Topology) -> tuple[Exchange | Queue, ...]:
    return (*topology.exchanges, *topology.queues)


async def _declare(channel: Channel, thing: Exchange | Queue, asked: dict[str, Any]) -> None:
    arguments = {name: value for name, value in asked.items() if name not in FLAGS and value is not None}
    durable, auto_delete = asked["durable"], asked["auto_delete"]
    if isinstance(thing, Queue):
        await channel.queue_declare(
            thing.name, durable=durable, auto_delete=auto_delete, exclusive=asked["exclusive"], arguments=arguments
        )
    else:
        await channel.exchange_declare(
            thing.name,
            exchange_type=asked["type"],
            durable=durable,
            auto_delete=auto_delete,
            internal=asked["internal"],
            arguments=arguments,
        )


async def _declare_passively(channel: Channel, thing: Exchange | Queue) -> None:
    if isinstance(thing, Queue):
        await channel.queue_declare(thing.name, passive=True)
    else:
        await channel.exchange_declare(thing.name, exchange_type=thing.type, passive=True)


async def _ready(channel: Channel, queue: Queue) -> int:
    return (await channel.queue_declare(queue.name, passive=True)).message_count or 0


async def _bind_queue(channel: Channel, binding: Binding) -> None:
    arguments = dict(binding.arguments)
    await channel.queue_bind(binding.queue, binding.exchange, binding.routing_key, arguments=arguments)


async def _vhost(channel: Channel) -> str:
    return str(channel.connection.vhost)  # type: ignore[attr-defined]


async def _ask(
    connection: Connection, question: Callable[Concatenate[Channel, P], Awaitable[T]], *args: P.args, **named: P.kwargs
) -> T:
    """Ask on a channel of its own, which a refusal closes."""
    channel = await connection.channel(within=ANSWER_WITHIN)
    try:
        return await answer(question(channel, *args, **named), within=ANSWER_WITHIN)
    finally:
        if not channel.is_closed:
            with suppress(RelmsgError):
                await answer(channel.close(), within=ANSWER_WITHIN)
