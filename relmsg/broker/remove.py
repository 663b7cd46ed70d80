"""Taking things out of the broker again; only for what the caller itself has declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from relmsg.broker.answer import answer
from relmsg.broker.connection import Connection
from relmsg.errors import RelmsgError

ANSWER_WITHIN = 10.0  # seconds


async def purge_queue(connection: Connection, name: str) -> None:
    """Remove all messages that wait in a queue. :raises BrokerAway, AccessRefused, BrokerRefused: it is not done."""
    await _ask(connection, lambda channel: channel.queue_purge(name))


async def delete_queue(connection: Connection, name: str) -> None:
    """Delete a queue with what is in it; one that is not there is fine.

    :raises BrokerAway, AccessRefused, BrokerRefused: it is not done.
    """
    await _ask(connection, lambda channel: channel.queue_delete(name))


async def delete_exchange(connection: Connection, name: str) -> None:
    """Delete an exchange and its bindings; one that is not there is fine.

    :raises BrokerAway, AccessRefused, BrokerRefused: it is not done.
    """
    await _ask(connection, lambda channel: channel.exchange_delete(name))


async def _ask(connection: Connection, question: Callable[[Any], Awaitable[object]]) -> None:
    """Ask on a channel of its own, which a refusal closes."""
    channel = await connection.channel(within=ANSWER_WITHIN)
    try:
        await answer(question(channel), within=ANSWER_WITHIN)
    finally:
        if not channel.is_closed:
            with suppress(RelmsgError):
                await answer(channel.close(), within=ANSWER_WITHIN)
