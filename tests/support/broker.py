"""A look into the broker with plain aiormq, so that tests of relmsg do not believe relmsg."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection, FieldTable


@dataclass(frozen=True, slots=True)
class Received:
    """A message as the broker handed it out."""

    body: bytes
    properties: aiormq.spec.Basic.Properties
    exchange: str
    routing_key: str
    redelivered: bool

    @property
    def headers(self) -> dict[str, Any]:
        return dict(self.properties.headers or {})

    @property
    def message_id(self) -> str | None:
        return self.properties.message_id


class Broker:
    """One connection, made when it is first needed and again after the broker was away; a channel per call."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: AbstractConnection | None = None

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                async with asyncio.timeout(5):
                    await connection.close()

    @contextlib.asynccontextmanager
    async def channel(self, *, confirms: bool = True) -> AsyncIterator[AbstractChannel]:
        """A channel for a test that needs more than the calls below."""
        if self._connection is None or self._connection.is_closed:
            await self.close()
            self._connection = await aiormq.connect(self.url)
        channel = await self._connection.channel(publisher_confirms=confirms)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await channel.close()

    async def exchange(self, name: str, kind: str = "direct", *, arguments: FieldTable | None = None) -> str:
        """Declare a durable exchange; its name."""
        async with self.channel() as channel:
            await channel.exchange_declare(name, exchange_type=kind, durable=True, arguments=arguments)
        return name

    async def queue(
        self, name: str, *, exchange: str = "", routing_key: str | None = None, arguments: FieldTable | None = None
    ) -> str:
        """Declare a durable queue, bound to ``exchange`` if one is named, by its own name unless told; its name."""
        async with self.channel() as channel:
            await channel.queue_declare(name, durable=True, arguments=arguments)
            if exchange:
                await channel.queue_bind(name, exchange, name if routing_key is None else routing_key)
        return name

    async def delete_queue(self, name: str) -> None:
        async with self.channel() as channel:
            await channel.queue_delete(name)

    async def delete_exchange(self, name: str) -> None:
        async with self.channel() as channel:
            await channel.exchange_delete(name)

    async def publish(
        self, body: bytes, *, routing_key: str, exchange: str = "", mandatory: bool = True, **properties: Any
    ) -> None:
        """Publish one raw message, persistent unless told, and wait for the confirm.

        :raises aiormq.exceptions.PublishError: if it could not be routed; DeliveryError if it was nacked.
        """
        async with self.channel() as channel:
            await channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                mandatory=mandatory,
                properties=aiormq.spec.Basic.Properties(**{"delivery_mode": 2, **properties}),
            )

    async def count(self, queue: str) -> int:
        """How many messages are ready in the queue; those a consumer holds are not counted."""
        async with self.channel() as channel:
            return (await channel.queue_declare(queue, passive=True)).message_count or 0

    async def consumers(self, queue: str) -> int:
        """How many consumers the queue has."""
        async with self.channel() as channel:
            return (await channel.queue_declare(queue, passive=True)).consumer_count or 0

    async def exists(self, queue: str) -> bool:
        try:
            await self.count(queue)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return False
        return True

    async def drain(self, queue: str, most: float = math.inf) -> list[Received]:
        """Take all messages that are ready, oldest first, and ack them.

        Whoever waits for room is let in by the first that is taken, so say ``most`` where somebody does.
        """
        taken: list[Received] = []
        async with self.channel() as channel:
            while len(taken) < most:
                got = await channel.basic_get(queue, no_ack=True)
                if not isinstance(got.delivery, aiormq.spec.Basic.GetOk):
                    break
                taken.append(
                    Received(
                        body=got.body,
                        properties=got.header.properties,
                        exchange=got.delivery.exchange or "",
                        routing_key=got.delivery.routing_key or "",
                        redelivered=bool(got.delivery.redelivered),
                    )
                )
        return taken
