"""The consumer on real services: what becomes of deliveries."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from compose.local import Services
from relmsg.broker.acks import ALONE_SECONDS
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.subscriber import Delivery, QueueMissing, Subscriber
from relmsg.broker.wire import Publication
from relmsg.errors import AccessRefused, BrokerAway, DatabaseAway, SchemaError
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry
from relmsg.testing import eventually
from tests.support.broker import Broker, Received
from tests.support.consuming import (
    QUEUE,
    QUICK,
    counted,
    create_effect,
    effect,
    effects,
    left,
    place,
    running,
    settled,
    unsubscribed,
)
from tests.support.proxy import Proxy


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def queue(broker: Broker) -> str:
    return await broker.queue(QUEUE)


@pytest.fixture
def inbox(sessions: async_sessionmaker[AsyncSession]) -> Inbox:
    return Inbox("billing", sessions)


async def place_without_id(broker: Broker, body: bytes) -> None:
    """As other clients may publish: aiormq and aio-pika give every message an id."""
    header = ContentHeader(0, len(body), Basic.Properties(message_type="order.placed"))
    frames = [Basic.Publish(routing_key=QUEUE), header, ContentBody(body)]
    async with broker.channel(confirms=False) as channel:
        await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames))
        await channel.queue_declare(QUEUE, passive=True)  # answered after the publish: it has arrived


async def in_errors(broker: Broker, count: int = 1) -> list[Received]:
    async def arrived() -> None:
        try:
            assert await broker.count(f"{QUEUE}.errors") == count
        except ChannelNotFoundEntity as error:
            raise AssertionError("there is no error queue") from error

    await eventually(arrived, within=20)
    return await broker.drain(f"{QUEUE}.errors")


def until(event: asyncio.Event) -> Callable[[], Any]:
    return lambda: asyncio.wait_for(event.wait(), 20)


async def test_effects_happen_once_and_duplicates_are_acked_and_counted(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Of messages that come twice each takes effect once; the queue is empty, the duplicates are in the metrics."""
    inbox.handler("order.placed", queue=QUEUE)(effect)
    ids = [str(n) for n in range(20)]
    await place(broker, *ids, *ids)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=20, duplicate=20)
    assert sorted(await effects(sessions)) == sorted(ids)
    assert await left(broker) == 0


async def test_ten_copies_at_once(inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str) -> None:
    """Ten copies of one message that are handled at the same time have one effect."""
    inbox.handler("order.placed", queue=QUEUE)(effect)
    await place(broker, *["7"] * 10)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1, duplicate=9)
    assert await effects(sessions) == ["7"]


async def test_two_handlers_may_want_the_same_message(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Two queues under two consumer names: a message that comes through both takes effect in both (C1)."""
    await broker.queue("archive")
    inbox.handler("order.placed", queue=QUEUE)(effect)
    inbox.handler("order.placed", queue="archive", consumer="archive")(effect)
    await place(broker, "7")
    await broker.publish(b"{}", routing_key="archive", message_id="7", message_type="order.placed")
    async with running(inbox, amqp_url):
        await eventually(lambda: _both(inbox), within=20)
    assert await effects(sessions) == ["7", "7"]


def _both(inbox: Inbox) -> None:
    assert counted(inbox, "handled") == 1
    assert counted(inbox, "handled", consumer="archive", queue="archive") == 1


async def test_a_failing_message_ends_in_the_error_queue_with_all_that_is_known(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """After its retries the message is in the error queue: as it came, and with the reason."""
    await broker.exchange("shop")
    await broker.queue(QUEUE, exchange="shop", routing_key="order.placed")
    calls: list[str] = []

    @inbox.handler("order.placed", queue=QUEUE, retry=QUICK)
    async def decline(message: Message, session: AsyncSession) -> None:
        calls.append(str(message.id))
        await effect(session, message)
        raise PermissionError("card declined")

    await broker.publish(
        b'{"id": 7}',
        exchange="shop",
        routing_key="order.placed",
        message_id="7",
        message_type="order.placed",
        app_id="orders",
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id="c-1",
        reply_to="answers",
        expiration="60000",
        headers={"tenant": "acme", "relmsg-key": "k", "x-death": [{"count": 3}]},
    )
    async with running(inbox, amqp_url):
        (copy,) = await in_errors(broker)
    assert calls == ["7", "7", "7"]
    assert await effects(sessions) == []
    assert await left(broker) == 0
    assert copy.body == b'{"id": 7}'
    properties = copy.properties
    assert (properties.message_id, properties.message_type, properties.app_id) == ("7", "order.placed", "orders")
    assert (properties.content_type, properties.content_encoding) == ("application/json", "utf-8")
    assert (properties.correlation_id, properties.reply_to) == ("c-1", "answers")
    assert (properties.delivery_mode, properties.priority, properties.expiration) == (2, None, None)
    headers = copy.headers
    assert headers.pop("x-exception-stacktrace").rstrip().endswith("PermissionError: card declined")
    assert headers.pop("relmsg-failed-at")
    headers.pop("x-delivery-count", None)  # added by the error queue, as it hands the copy to us
    assert headers == {
        "tenant": "acme",
        "relmsg-key": "k",
        "x-exception-message": "card declined",
        "x-original-exchange": "shop",
        "x-original-routingKey": "order.placed",
        "relmsg-error-reason": "handler_failed",
        "relmsg-error-type": "builtins.PermissionError",
        "relmsg-error-attempts": 3,
        "relmsg-original-queue": QUEUE,
        "relmsg-consumer": "billing",
        "relmsg-original-expiration": "60000",
    }


async def test_a_message_from_the_error_queue_can_be_handled_later(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A failure is not remembered as handled: put back under the same id, the message takes effect (C3)."""
    broken = True

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def handle(message: Message, session: AsyncSession) -> None:
        if broken:
            raise ValueError("not yet")
        await effect(session, message)

    await place(broker, "7")
    async with running(inbox, amqp_url):
        await in_errors(broker)
        broken = False
        await place(broker, "7")
        await settled(inbox, failed=1, handled=1)
    assert await effects(sessions) == ["7"]


@pytest.mark.parametrize(
    ("properties", "body", "reason", "error_type"),
    [
        ({"message_id": None}, b'{"id": 1}', "missing_id", "relmsg.errors.MissingMessageId"),
        ({"message_type": "order.lost"}, b'{"id": 1}', "unknown_type", "relmsg.errors.UnknownType"),
        ({"message_type": None}, b'{"id": 1}', "unknown_type", "relmsg.errors.UnknownType"),
        ({}, b"<xml/>", "undecodable", "relmsg.errors.Undecodable"),
        ({}, b"\xff\xfe", "undecodable", "relmsg.errors.Undecodable"),
    ],
)
async def test_what_no_retry_can_help_goes_to_the_error_queue_at_once(
    inbox: Inbox,
    sessions: Any,
    broker: Broker,
    amqp_url: str,
    queue: str,
    properties: dict[str, Any],
    body: bytes,
    reason: str,
    error_type: str,
) -> None:
    """Without an id, of unknown type, or undecodable: no attempt is made, and the original bytes are kept (C18)."""

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(event: dict, message: Message, session: AsyncSession) -> None:  # type: ignore[type-arg]
        await effect(session, message)

    if "message_id" in properties:
        await place_without_id(broker, body)
    else:
        await place(broker, "1", body=body, **properties)
    await place(broker, "good", body=b"{}")
    async with running(inbox, amqp_url):
        (copy,) = await in_errors(broker)
        await settled(inbox, handled=1, failed=1)
    assert (copy.headers["relmsg-error-reason"], copy.headers["relmsg-error-type"]) == (reason, error_type)
    assert copy.headers["relmsg-error-attempts"] == 0
    assert copy.body == body
    if "message_id" in properties:
        uuid.UUID(copy.message_id or "")
    else:
        assert copy.message_id == "1"
    assert await effects(sessions) == ["good"]


async def test_by_rule_hash_messages_without_id_are_handled(
    sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """With missing_id="hash" two equal messages without an id are one, and a different one is another."""
    inbox = Inbox("billing", sessions, missing_id="hash")
    inbox.handler("order.placed", queue=QUEUE)(effect)
    for body in (b"1", b"1", b"2"):
        await place_without_id(broker, body)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2, duplicate=1)
    assert len(await effects(sessions)) == 2


async def test_publishers_that_know_nothing_of_relmsg_are_welcome(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A bare message with nothing but an id reaches the default handler."""
    inbox.handler("*", queue=QUEUE)(effect)
    await broker.publish(b"", routing_key=QUEUE, message_id="7", delivery_mode=1)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1)
    assert await effects(sessions) == ["7"]


async def test_headers_that_cannot_be_sent_again_do_not_stop_the_error_copy(
    inbox: Inbox, broker: Broker, amqp_url: str, queue: str
) -> None:
    """The error copy arrives without a header of 125 KB, which it names, and with bytes of no UTF-8 (C16, C17)."""

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def fail(message: Message) -> None:
        raise ValueError("no")

    await place(broker, "1", headers={"huge": "x" * 125_000, "tenant": "acme", "latin": _Latin("café")})
    async with running(inbox, amqp_url):
        (copy,) = await in_errors(broker)
    assert copy.headers["tenant"] == "acme"
    assert copy.headers["latin"] == b"caf\xe9"
    assert "huge" not in copy.headers
    assert copy.headers["relmsg-sanitised-headers"] == "huge (dropped)"


async def test_properties_that_cannot_be_read_cost_one_message_and_no_connection(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """B1: a type in Latin-1 goes to the error queue; of a timestamp beyond all calendars only the property is lost."""

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)

    def publish(message_id: str, damage: Callable[[bytes], bytes]) -> Publication:
        properties = Basic.Properties(
            message_id=message_id, message_type="order.placed", timestamp=datetime(2026, 1, 1, tzinfo=UTC)
        )
        header = ContentHeader(properties=properties, body_size=4).marshal()
        return Publication(message_id, "", QUEUE, damage(header), b"body")

    moment = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()).to_bytes(8, "big")
    async with Connection([amqp_url]) as connection:
        channel = ConfirmChannel(connection)
        await channel.publish(
            [
                publish("1", lambda header: header),
                publish("2", lambda header: header.replace(moment, b"\x7f" + b"\xff" * 7)),
                publish("3", lambda header: header.replace(b"order.placed", b"order.plac\xe9d")),
                publish("4", lambda header: header),
            ]
        )
        await channel.close()
    async with running(inbox, amqp_url):
        (copy,) = await in_errors(broker)
        await settled(inbox, handled=3, failed=1)
    assert (copy.message_id, copy.headers["relmsg-error-reason"], copy.body) == ("3", "undecodable", b"body")
    assert sorted(await effects(sessions)) == ["1", "2", "4"]


class _Latin(str):
    """A text that some other client would send in its own encoding."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:  # type: ignore[override]
        return super().encode("latin-1")


async def test_a_deleted_error_queue_makes_the_consumer_wait_and_lose_nothing(
    inbox: Inbox, broker: Broker, amqp_url: str, queue: str
) -> None:
    """While the error copy finds no queue the original stays unacked; then the queue is declared anew (C14)."""
    calls = 0

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def fail(message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await broker.delete_queue(f"{QUEUE}.errors")
        raise ValueError("no")

    await place(broker, "7")
    async with running(inbox, amqp_url):
        (copy,) = await in_errors(broker)
        await settled(inbox, failed=1)
    assert copy.message_id == "7"
    assert calls == 1
    assert await left(broker) == 0


async def test_a_full_error_queue_keeps_the_original_until_there_is_room(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A nacked error copy leaves the original unacked and the consumer paused; with room again everything goes on."""
    await broker.queue(f"{QUEUE}.errors", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await broker.publish(b"in the way", routing_key=f"{QUEUE}.errors")

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def handle(message: Message, session: AsyncSession) -> None:
        if message.id == "bad":
            raise ValueError("no")
        await effect(session, message)

    def paused() -> None:
        assert "error exchange" in (inbox.ready() or "")

    await place(broker, "bad")
    async with running(inbox, amqp_url):
        await eventually(paused)
        await place(broker, "good")
        assert counted(inbox, "failed") == 0
        assert [each.body for each in await broker.drain(f"{QUEUE}.errors", most=1)] == [b"in the way"]
        (copy,) = await in_errors(broker)
        await settled(inbox, failed=1, handled=1)
        assert inbox.ready() is None
    assert copy.message_id == "bad"
    assert await effects(sessions) == ["good"]


async def test_stopping_while_the_error_queue_is_full_loses_nothing(
    inbox: Inbox, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A consumer that waits for its error queue stops at once, and the message is back in its queue."""
    await broker.queue(f"{QUEUE}.errors", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def fail(message: Message) -> None:
        raise ValueError("no")

    def paused() -> None:
        assert "error exchange" in (inbox.ready() or "")

    await place(broker, "7")
    async with running(inbox, amqp_url):
        await eventually(paused)
    assert await left(broker) == 1


async def test_stopping_finishes_what_runs_and_leaves_the_rest(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Draining: the running handlers commit and are acked; what was only prefetched is in the queue again (C7, C21)."""
    inbox.concurrency = 2
    begun: list[str] = []
    go = asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        begun.append(str(message.id))
        await go.wait()
        await effect(session, message)

    def two() -> None:
        assert len(begun) == 2

    await place(broker, *map(str, range(10)))
    async with running(inbox, amqp_url) as stop:
        await eventually(two)
        stop.set()
        await unsubscribed(broker)
        go.set()
    assert sorted(await effects(sessions)) == sorted(begun)
    assert len(begun) == 2
    assert await left(broker) == 8


async def test_what_does_not_finish_in_time_is_cancelled_and_comes_again(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A handler that is still running at the end of the drain is rolled back, and its message delivered again (C7)."""
    inbox.drain = 0.1
    begun = asyncio.Event()
    patient = True

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)
        begun.set()
        if patient:
            await asyncio.Event().wait()

    await place(broker, "7")
    async with running(inbox, amqp_url):
        await until(begun)()
    assert await effects(sessions) == []
    assert await left(broker) == 1
    patient = False
    async with running(inbox, amqp_url):
        await settled(inbox, handled=1)
    assert await effects(sessions) == ["7"]


async def test_cancelling_run_drains_too(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """An application that cancels run() gets a drain before the CancelledError."""
    begun, go = asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        begun.set()
        await go.wait()
        await effect(session, message)

    await place(broker, "7")
    task = asyncio.create_task(inbox.run(amqp_url))
    await until(begun)()
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert await effects(sessions) == ["7"]
    assert await left(broker) == 0


async def test_a_message_between_two_attempts_does_not_hold_up_the_stop(
    inbox: Inbox, broker: Broker, amqp_url: str, queue: str
) -> None:
    """A long backoff is interrupted by the stop; the message is left in the queue and not in the error queue."""
    failed = asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=9, base=3600, cap=3600, budget=1e9))
    async def fail(message: Message) -> None:
        failed.set()
        raise ValueError("no")

    await place(broker, "7")
    async with asyncio.timeout(20), running(inbox, amqp_url):
        await until(failed)()
    assert await left(broker) == 1
    assert await broker.count(f"{QUEUE}.errors") == 0


async def test_messages_of_one_key_are_handled_in_order(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Per ordering key effects come in the order of delivery, also when the first one is retried; other keys go on."""
    tries: dict[str, int] = {}

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=5, base=0.02, cap=0.02))
    async def handle(message: Message, session: AsyncSession) -> None:
        tries[str(message.id)] = tries.get(str(message.id), 0) + 1
        if str(message.id).endswith("0") and tries[str(message.id)] < 4:
            raise OSError("not yet")
        await effect(session, message)

    for n in range(5):
        for key in ("a", "b", "c"):
            await place(broker, f"{key}{n}", headers={"relmsg-key": key})
    async with running(inbox, amqp_url):
        await settled(inbox, handled=15)
    done = await effects(sessions)
    for key in ("a", "b", "c"):
        assert [each for each in done if each.startswith(key)] == [f"{key}{n}" for n in range(5)]


async def test_a_lost_broker_connection_does_not_stop_a_handler(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """The connection is cut under a handler: it commits, its ack is skipped, the redelivery is a duplicate (C10)."""
    begun, go = asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        begun.set()
        await go.wait()
        await effect(session, message)

    async with Proxy.before(amqp_url) as proxy:
        await place(broker, "7")
        async with running(inbox, proxy.through(amqp_url)):
            await until(begun)()
            before = proxy.accepted
            proxy.reset()

            def reconnected() -> None:
                assert proxy.accepted > before
                assert inbox.ready() is None

            await eventually(reconnected, within=20)
            go.set()
            await settled(inbox, handled=1, duplicate=1)
            await place(broker, "8")
            await settled(inbox, handled=2)
    assert await effects(sessions) == ["7", "8"]
    assert await left(broker) == 0


async def test_what_was_prefetched_on_a_lost_connection_is_not_handled_twice(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Deliveries of a dead channel are dropped before handling, so the redeliveries find no duplicates (C9)."""
    inbox.concurrency = 1
    calls: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE)
    async def handle(message: Message, session: AsyncSession) -> None:
        calls.append(str(message.id))
        begun.set()
        await go.wait()
        await effect(session, message)

    async with Proxy.before(amqp_url) as proxy:
        await place(broker, *map(str, range(10)))
        async with running(inbox, proxy.through(amqp_url)):
            await until(begun)()
            await proxy.refuse()  # until the loss was seen: a new connection may be there in no time
            proxy.reset()

            def lost() -> None:
                assert inbox.ready() is not None

            await eventually(lost)
            await proxy.accept()
            go.set()
            await settled(inbox, handled=10, duplicate=1)
    assert sorted(calls) == sorted(map(str, range(10)))
    assert len(await effects(sessions)) == 10


async def test_a_deleted_queue_is_waited_for(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """When the queue is deleted the consumer is not ready, and goes on once somebody has declared it again."""
    inbox.handler("order.placed", queue=QUEUE)(effect)

    def waits() -> None:
        assert inbox.ready() == f"queue {QUEUE} is not consumed"

    def goes_on() -> None:
        assert inbox.ready() is None

    async with running(inbox, amqp_url):
        goes_on()
        await broker.delete_queue(QUEUE)
        await eventually(waits)
        await broker.queue(QUEUE)
        await eventually(goes_on, within=30)
        await place(broker, "7")
        await settled(inbox, handled=1)


async def test_a_delivery_cannot_be_acked_twice_or_too_late(broker: Broker, amqp_url: str, queue: str) -> None:
    """The second ack, and one after the channel is gone, are answered with False and never sent (B16)."""
    came: list[Delivery] = []

    def two() -> None:
        assert len(came) == 2

    await place(broker, "1", "2")
    async with Connection([amqp_url]) as connection:
        subscriber = Subscriber(connection, queue, came.append, prefetch=5)
        await subscriber.start()
        await eventually(two)
        assert [await came[0].ack(), await came[0].ack()] == [True, False]
        assert subscriber.is_consuming
        await subscriber.close()
        assert came[1].is_stale
        assert await came[1].ack() is False
    assert await left(broker) == 1


@pytest.mark.parametrize("bulk", [True, False], ids=["bulk", "plain"])
async def test_an_ack_of_many_does_not_overtake_those_of_single_messages(
    broker: Broker, amqp_url: str, queue: str, bulk: bool
) -> None:
    """Messages are acked one by one, and before that is written, one ack covers them all: no ack is for a message that
    is acked already, which would cost the channel."""
    came: list[Delivery] = []

    def all_came() -> None:
        assert len(came) == 400

    await place(broker, *map(str, range(400)))
    async with Connection([amqp_url], bulk=bulk) as connection:
        subscriber = Subscriber(connection, queue, came.append, prefetch=500)
        await subscriber.start()
        await eventually(all_came)
        for start in range(0, 400, 130):
            behind, rest = came[start + 5 : start + 105], [*came[start : start + 5], *came[start + 105 : start + 130]]
            for delivery in behind:
                assert await delivery.ack()
            await asyncio.sleep(ALONE_SECONDS + 0.001)  # these are being written one by one, the first is missing
            for delivery in rest:
                assert await delivery.ack()  # now one ack would cover them all
        await subscriber.stop()  # the broker answers on this channel, or has closed it
        assert subscriber.is_consuming
        await subscriber.close()
        assert connection.generation == 1
    assert await left(broker) == 0


async def test_a_cancelled_wait_of_one_handler_leaves_the_channel_alone(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str
) -> None:
    """Handlers that time out do not cost the others their channel or their acks."""

    @inbox.handler("order.placed", queue=QUEUE, timeout=0.05, retry=Retry(attempts=1))
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)
        if message.id == "slow":
            await asyncio.sleep(30)

    await place(broker, "slow", *map(str, range(20)), "slow")
    async with running(inbox, amqp_url):
        await settled(inbox, handled=20, failed=2)
    assert sorted(await effects(sessions)) == sorted(map(str, range(20)))
    assert [copy.headers["relmsg-error-reason"] for copy in await in_errors(broker, 2)] == ["handler_timeout"] * 2


async def test_a_missing_queue_is_told_at_the_start(inbox: Inbox, broker: Broker, amqp_url: str) -> None:
    """A queue that does not exist is wrong use and said in one line; no error queue is left behind."""
    inbox.handler("order.placed", queue="nowhere")(effect)
    with pytest.raises(QueueMissing, match="queue 'nowhere' does not exist: declare it"):
        await inbox.run(amqp_url)
    assert not await broker.exists("nowhere.errors")
    assert QueueMissing.exit_code == 2


async def test_services_that_are_away_are_told_at_the_start(
    inbox: Inbox, amqp_url: str, database_url: str, queue: str
) -> None:
    """At the start nothing is waited for: no broker, a wrong password, no database, no tables are named at once."""
    inbox.handler("order.placed", queue=QUEUE)(effect)
    with pytest.raises(BrokerAway):
        await inbox.run("amqp://guest:guest@127.0.0.1:1/")
    with pytest.raises(AccessRefused):
        await inbox.run(amqp_url.replace("@", "x@"))
    elsewhere = create_async_engine("postgresql+asyncpg://user:password@127.0.0.1:1/nowhere")
    away = Inbox("billing", async_sessionmaker(elsewhere))
    away.handler("order.placed", queue=QUEUE)(effect)
    with pytest.raises(DatabaseAway):
        await away.run(amqp_url)
    without = Inbox("billing", inbox.sessions, schema="other")
    without.handler("order.placed", queue=QUEUE)(effect)
    with pytest.raises(SchemaError, match="relmsg db upgrade"):
        await without.run(amqp_url)


async def test_a_restarted_broker_is_waited_for(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str, services: Services
) -> None:
    """RabbitMQ is killed under running handlers and started again: each takes effect once, and failures arrive."""
    begun, go = asyncio.Event(), asyncio.Event()

    @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))
    async def handle(message: Message, session: AsyncSession) -> None:
        begun.set()
        await go.wait()
        if message.id == "0":
            raise ValueError("no")
        await effect(session, message)

    async def all_done() -> None:
        assert sorted(await effects(sessions)) == sorted(map(str, range(1, 50)))
        assert await broker.count(QUEUE) == 0
        assert await broker.count(f"{QUEUE}.errors") >= 1

    # A classic error queue: a quorum queue that is declared within a second or two before RabbitMQ 3.10 is killed comes
    # back as "running" and never confirms anything again.
    await broker.queue(f"{QUEUE}.errors")
    await place(broker, *map(str, range(50)))
    async with running(inbox, amqp_url):
        await until(begun)()
        await asyncio.to_thread(services.stop_rabbitmq, False)
        go.set()
        await asyncio.to_thread(services.start_rabbitmq)
        await eventually(all_done, within=60)
    assert {copy.message_id for copy in await broker.drain(f"{QUEUE}.errors")} == {"0"}
    assert await left(broker) == 0


async def test_a_restarted_database_is_waited_for(
    inbox: Inbox, sessions: Any, broker: Broker, amqp_url: str, queue: str, services: Services
) -> None:
    """PostgreSQL stops and starts: the consumer pauses and resumes by itself, nothing is lost, no attempt is spent."""
    inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1))(effect)

    def paused() -> None:
        assert "database" in (inbox.ready() or "")

    ids = [str(n) for n in range(200)]
    async with running(inbox, amqp_url):
        await place(broker, *ids[:100])
        await asyncio.to_thread(services.stop_postgres, False)
        try:
            await place(broker, *ids[100:])
            await eventually(paused)
        finally:
            await asyncio.to_thread(services.start_postgres)

        async def all_took_effect() -> None:
            assert sorted(await effects(sessions)) == sorted(ids)

        await eventually(all_took_effect, within=40)
        assert inbox.ready() is None
    assert await broker.count(f"{QUEUE}.errors") == 0
    assert await left(broker) == 0
