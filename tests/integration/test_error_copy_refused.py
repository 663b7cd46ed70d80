"""Error copies that the broker refuses: what is cut, what is told of it, and that the others go on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.broker import cut_copy, error_exchange
from relmsg.broker.delivery import Delivery
from relmsg.broker.wire import Publication
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, create_effect, effect, effects, left, place, running, sample, settled

LIMIT = 200_000


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def inbox(sessions: Any, broker: Broker) -> Inbox:
    await broker.queue(QUEUE)
    inbox = Inbox("billing", sessions)

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def handle(message: Message, session: AsyncSession) -> None:
        if str(message.id).startswith("bad"):
            raise ValueError("no " * 500)
        await effect(session, message)

    return inbox


async def test_a_body_that_is_too_large_is_cut_and_told(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, limited: Any
) -> None:
    """A failed message over max_message_size: its copy has the beginning of the body, with its size and hash; smaller
    ones that failed beside it are whole, good ones take effect, and nothing pauses."""
    large = bytes(range(256)) * 2000
    await place(broker, "bad large", body=large)
    await place(broker, "bad", "1", "2")
    await limited(LIMIT)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2, failed=2)
        await place(broker, "3", "bad too")
        await settled(inbox, handled=3, failed=3)
        assert inbox.ready() is None
    copies = {copy.message_id: copy for copy in await broker.drain(f"{QUEUE}.errors")}
    assert set(copies) == {"bad large", "bad", "bad too"}
    cut = copies["bad large"]
    assert cut.body == large[: len(cut.body)]
    assert 0 < len(cut.body) < LIMIT
    assert cut.headers["relmsg-body-size"] == len(large)
    assert cut.headers["relmsg-body-sha256"] == hashlib.sha256(large).hexdigest()
    assert "body (cut)" in cut.headers["relmsg-sanitised-headers"]
    assert cut.headers["relmsg-error-reason"] == "handler_failed"
    assert copies["bad"].body == b"{}"
    assert "relmsg-body-size" not in copies["bad"].headers
    assert sorted(await effects(sessions)) == ["1", "2", "3"]
    assert await left(broker) == 0


async def test_a_body_of_which_nothing_is_taken_is_told_by_its_hash(
    inbox: Inbox, broker: Broker, amqp_url: str, limited: Any
) -> None:
    """Where not even 64 KiB pass, the copy has no body, and still says which message it was and why it failed."""
    await place(broker, "bad", body=b"x" * 100_000)
    await limited(1000)
    async with running(inbox, amqp_url):
        await settled(inbox, failed=1)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert (copy.message_id, copy.body) == ("bad", b"")
    assert copy.headers["relmsg-body-size"] == 100_000
    assert copy.headers["relmsg-error-reason"] == "handler_failed"


async def test_a_message_of_which_no_copy_is_taken_waits_alone(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker refuses every copy of one message: it stays unacked and is counted; good ones and other failures go
    on, the consumer is ready, and at its end the message is in its queue."""

    def damaged(delivery: Delivery, copy: Publication) -> Publication:
        """A content header of another class: the broker answers with 505 or 501."""
        if delivery.message.id != "bad alone":
            return copy
        return copy._replace(header=b"\x00\x0a" + copy.header[2:])

    real, smaller = error_exchange.ErrorExchange.copy, cut_copy.smaller_copies

    def all_smaller(delivery: Delivery, *rest: Any) -> Iterator[Callable[[], Publication]]:
        return (lambda make=make: damaged(delivery, make()) for make in smaller(delivery, *rest))  # type: ignore[misc]

    monkeypatch.setattr(error_exchange.ErrorExchange, "copy", lambda *given: damaged(given[1], real(*given)))
    monkeypatch.setattr(error_exchange, "smaller_copies", all_smaller)
    await place(broker, "bad alone", "bad", *map(str, range(20)))

    def set_aside() -> None:
        assert sample(inbox, "relmsg_consumer_copies_refused_total") == 1
        assert inbox.ready() is None

    async with running(inbox, amqp_url):
        await settled(inbox, handled=20, failed=1)
        await eventually(set_aside, within=30)
        await place(broker, "later")
        await settled(inbox, handled=21, failed=1)
    copies = await broker.drain(f"{QUEUE}.errors")  # once or twice: its first copy was lost with the connection
    assert {(copy.message_id, copy.body) for copy in copies} == {("bad", b"{}")}
    assert len(await effects(sessions)) == 21
    assert await left(broker) == 1


class _Latin(str):
    """A text that some other client would send in its own encoding."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:  # type: ignore[override]
        return super().encode("latin-1")


async def test_a_property_that_cannot_be_sent_again_is_cut(inbox: Inbox, broker: Broker, amqp_url: str) -> None:
    """A correlation id of 255 bytes that are not UTF-8 grows when it is made readable: it is cut, the copy arrives."""
    await place(broker, "bad", correlation_id=_Latin("é" * 255))
    async with running(inbox, amqp_url):
        await settled(inbox, failed=1)
    (copy,) = await broker.drain(f"{QUEUE}.errors")
    assert copy.message_id == "bad"
    assert copy.body == b"{}"
