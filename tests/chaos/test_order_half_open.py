"""Order of a key across a connection that is half open: lost here, and alive for the broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.testing import eventually
from relmsg.topology import Queue
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, left, place, running
from tests.support.proxy import Proxy

KEYS = "abcd"


class HalfOpen(Proxy):
    """Ends connections on the client's side only: the broker hears nothing, and nobody reads what it sends."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._clients: list[asyncio.StreamWriter] = []
        self._servers: list[asyncio.StreamWriter] = []
        self.to_broker = (host, port)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(*self.to_broker)
        self._clients.append(to_client)
        self._servers.append(to_server)
        await asyncio.gather(_copy(client, to_server), _copy(server, to_client))

    def lose(self) -> None:
        """The clients see a lost connection."""
        for writer in self._clients:
            writer.transport.abort()
        self._clients.clear()

    def end(self) -> None:
        """The broker's side ends as well."""
        for writer in self._servers:
            writer.transport.abort()


async def _copy(source: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            if not onward.transport.is_closing():
                onward.write(data)


@pytest.fixture
async def half_open(amqp_url: str) -> AsyncIterator[HalfOpen]:
    parts = urlsplit(amqp_url)
    async with HalfOpen(parts.hostname or "", parts.port or 5672) as proxy:
        yield proxy
        proxy.lose()
        proxy.end()


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


async def test_a_single_active_consumer_keeps_the_order_over_a_half_open_connection(
    sessions: Any, broker: Broker, amqp_url: str, half_open: HalfOpen
) -> None:
    """The consumer loses its connection and subscribes again, while the broker goes on feeding the old channel: with a
    single active consumer it gives the new one nothing before the old one is gone, and each key keeps its order."""
    queue = Queue(QUEUE, dead_letter_exchange=None, arguments={"x-single-active-consumer": True})
    await broker.queue(QUEUE, arguments=queue.declaration)
    inbox = Inbox("billing", sessions, prefetch=20, heartbeat=2.0)
    some, go = asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE, group=1)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)
        if str(message.id) == "a10":
            some.set()
            await go.wait()

    ids = [f"{key}{number}" for number in range(60) for key in KEYS]

    async def all_took_effect() -> None:
        assert sorted(await effects(sessions)) == sorted(ids)

    async with running(inbox, half_open.through(amqp_url)):
        for each in ids:
            await place(broker, each, headers={"relmsg-key": each[0]})
        await asyncio.wait_for(some.wait(), 20)
        half_open.lose()

        def subscribed_again() -> None:
            assert half_open.accepted >= 4  # two connections, twice

        await eventually(subscribed_again, within=20)
        go.set()
        await eventually(all_took_effect, within=60)
    half_open.end()
    orders: dict[str, list[int]] = defaultdict(list)
    for each in await effects(sessions):
        orders[each[0]].append(int(each[1:]))
    assert all(order == sorted(order) for order in orders.values())
    assert set(orders) == set(KEYS)
    assert await left(broker) == 0
