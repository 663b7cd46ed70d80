"""Deliveries are put together from frames and read as pamqp reads them; what cannot be read harms only itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from relmsg.amqp.decode_table import TooDeep
from relmsg.amqp.remarks import Remarks
from relmsg.broker.acks import Ack, Nack
from relmsg.broker.delivery import Delivery
from relmsg.broker.frame import HEAD
from relmsg.broker.receiving import Receiving, ack_frames, message_of
from relmsg.broker.tap import Tap
from relmsg.broker.wire import received
from relmsg.message import Message

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
SHORT = st.none() | TEXT
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXT
    | st.binary(max_size=20).map(bytearray)
    | st.decimals(-1000, 1000, places=2)
    | MOMENTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PROPERTIES = st.builds(
    commands.Basic.Properties,
    content_type=SHORT,
    content_encoding=SHORT,
    headers=st.none() | st.dictionaries(TEXT, VALUES, max_size=5) | TEXT.map(lambda key: {"relmsg-key": key}),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=SHORT,
    reply_to=SHORT,
    expiration=SHORT,
    message_id=SHORT,
    timestamp=st.none() | MOMENTS,
    message_type=SHORT,
    user_id=SHORT,
    app_id=SHORT,
)


def by_pamqp(header: bytes, body: bytes = b"") -> tuple[Message, str | None]:
    """What the library makes of a content header."""
    read = ContentHeader()
    read.unmarshal(header)
    deliver = commands.Basic.Deliver("tag", 1, False, "e", "r")
    message = received(DeliveredMessage(delivery=deliver, header=read, body=body, channel=None))
    return message, read.properties.expiration


@given(PROPERTIES)
def test_headers_are_read_as_pamqp_reads_them(properties):
    """Any header that pamqp can write is read to the same message as pamqp reads it to."""
    header = ContentHeader(properties=properties, body_size=0).marshal()
    message, expiration, remarks = message_of(header, "e", "r", b"")
    assert remarks is None or (remarks.fault, remarks.altered) == (None, [])
    assert (message, expiration) == by_pamqp(header)
    assert repr(message) == repr(by_pamqp(header)[0]), "also the types: in Python True == 1"


@given(st.binary(max_size=60), PROPERTIES, st.data())
def test_no_header_can_do_harm(noise, properties, data):
    """Bytes that are no header, or one that was damaged, give a message with a fault or another message, never more."""
    message_of(b"\0" * 12 + noise, "e", "r", b"")
    header = bytearray(ContentHeader(properties=properties, body_size=0).marshal())
    position = data.draw(st.integers(12, len(header) - 1))
    header[position] = data.draw(st.integers(0, 255))
    message, *_ = message_of(bytes(header), "e", "r", b"body")
    assert message.body == b"body"


def test_strings_that_are_not_utf_8_are_a_fault_of_their_message():
    """B1: an id in Latin-1 costs no connection; the message tells what was wrong and keeps what could be read."""
    header = ContentHeader(properties=commands.Basic.Properties(message_id="x?z", message_type="t")).marshal()
    message, _, remarks = message_of(header.replace(b"x?z", b"x\xe4z"), "e", "r", b"body")
    assert remarks is not None
    assert isinstance(remarks.fault, UnicodeDecodeError)
    assert remarks.altered == ["message_id (repaired)"]
    assert (message.id, message.type, message.body) == ("x\ufffdz", "t", b"body")


def test_an_unknown_field_type_is_a_fault_of_its_message():
    """B1: a header value of a type that AMQP 0-9-1 does not have leaves what stands beside it readable."""
    properties = commands.Basic.Properties(
        headers={"a": 1.5, "b": True}, message_id="m", timestamp=datetime(2026, 1, 1, tzinfo=UTC)
    )
    header = ContentHeader(properties=properties).marshal().replace(b"\x01bt\x01", b"\x01bq\x01")
    message, _, remarks = message_of(header, "e", "r", b"")
    assert remarks is not None
    assert remarks.fault is not None
    assert remarks.altered == ["header b (dropped)"]
    assert (message.id, message.headers) == ("m", {"a": 1.5})


AT = datetime(2026, 1, 1, tzinfo=UTC)
SECONDS = int(AT.timestamp())
IMPOSSIBLE_TIMES = st.sampled_from([SECONDS * 10**6, SECONDS * 10**9, 2**64 - 3600, 2**63, 2**64 - 1])


@given(IMPOSSIBLE_TIMES)
def test_a_timestamp_that_python_cannot_tell_is_left_out(number):
    """C9: microseconds, a time before 1970 and a far future cost the property, with a remark, and not the message."""
    properties = commands.Basic.Properties(timestamp=AT, message_id="m", headers={"a": AT, "b": 1})
    header = ContentHeader(properties=properties).marshal()
    before, _, behind = header.rpartition(SECONDS.to_bytes(8, "big"))
    message, _, remarks = message_of(before + number.to_bytes(8, "big") + behind, "e", "r", b"")
    assert remarks is not None
    assert (remarks.fault, remarks.altered) == (None, ["timestamp (dropped)"])
    assert (message.id, message.timestamp, message.headers) == ("m", None, {"a": AT, "b": 1})


@given(IMPOSSIBLE_TIMES)
def test_a_header_with_a_time_that_python_cannot_tell_is_left_out(number):
    """C9: the same holds of a time among the headers, also inside a list."""
    properties = commands.Basic.Properties(
        message_id="m", headers={"a": {"at": AT}, "b": AT, "c": 1, "relmsg-key": "k"}
    )
    header = ContentHeader(properties=properties).marshal()
    message, _, remarks = message_of(
        header.replace(SECONDS.to_bytes(8, "big"), number.to_bytes(8, "big")), "e", "r", b""
    )
    assert remarks is not None
    assert (remarks.fault, remarks.altered) == (None, ["header a (dropped)", "header b (dropped)"])
    assert (message.ordering_key, message.headers) == ("k", {"c": 1, "relmsg-key": "k"})


SHORT_NAMES = ["content_type", "correlation_id", "reply_to", "message_id", "message_type", "app_id"]


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_what_was_repaired_can_be_sent_on(name):
    """A property of 255 bytes that are no UTF-8 is cut when it is repaired, so that the message can be copied."""
    text = "?" * 255
    header = ContentHeader(properties=commands.Basic.Properties(**{name: text}), body_size=4).marshal()
    message, expiration, remarks = message_of(header.replace(text.encode(), b"\xff" * 255), "e", "r", b"body")
    delivery = Delivery(message, "q", Gone(), 1, expiration=expiration, remarks=remarks)
    assert delivery.fault is not None
    copy = delivery.copy(exchange="x", routing_key="q.errors", message_id=str(message.id) or "new", headers={})
    again, _, remarks = message_of(copy.header, "x", "q.errors", copy.body)
    assert remarks is None
    assert again.body == b"body"


def test_a_cluster_id_is_sent_on():
    """F5: the copy of a message carries its priority and the deprecated cluster id as they came."""
    properties = commands.Basic.Properties(message_id="m", priority=7)
    properties.cluster_id = "c1"
    message, expiration, remarks = message_of(ContentHeader(properties=properties).marshal(), "e", "r", b"")
    delivery = Delivery(message, "q", Gone(), 1, expiration=expiration, remarks=remarks)
    copy = delivery.copy(exchange="x", routing_key="q.errors", message_id="m", headers={})
    again, _, remarks = message_of(copy.header, "x", "q.errors", b"")
    assert again.priority == 7
    assert remarks is not None
    assert remarks.cluster_id == "c1"


def test_tables_that_are_nested_too_deep_are_a_fault_of_their_message():
    """Headers 40 levels deep cost themselves; a level of 32 is read."""
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    properties = commands.Basic.Properties(headers={"b": 1, "deep": deep}, message_id="m")
    message, _, remarks = message_of(ContentHeader(properties=properties).marshal(), "e", "r", b"")
    assert remarks is not None
    assert isinstance(remarks.fault, TooDeep)
    assert message.headers == {"b": 1}


class Gone:
    """A channel that is lost."""

    generation = 1
    is_open = False

    def finish(self, tag: int) -> bool:
        return False


@given(st.lists(st.tuples(st.binary(max_size=50), st.integers(1, 60), st.booleans()), max_size=8))
def test_frames_become_messages(sent):
    """Bodies in any number of frames are put together, in order, each with its tag; nothing else is taken."""
    arrived: list[tuple[int, bool, bytes, str]] = []
    receiving = Receiving(
        lambda tag, message, *_: arrived.append((tag, message.redelivered, message.body, message.routing_key)),
        closed=lambda: None,
    )
    for tag, (body, size, redelivered) in enumerate(sent, 1):
        frames = [
            commands.Basic.Deliver("consumer", tag, redelivered, "e", f"r{tag}"),
            ContentHeader(body_size=len(body), properties=commands.Basic.Properties(message_id=str(tag))),
            *(ContentBody(body[start : start + size]) for start in range(0, len(body), size)),
        ]
        for each in frames:
            data = frame.marshal(each, 1)
            assert receiving.take(data[0], data, HEAD.size, len(data) - 1)
    assert arrived == [(tag, redelivered, body, f"r{tag}") for tag, (body, _, redelivered) in enumerate(sent, 1)]


CHUNKS = st.lists(st.integers(1, 900), max_size=30)
KINDS = st.sampled_from(["whole", "empty", "in pieces", "of another channel", "no delivery", "broken"])


@given(st.lists(KINDS, max_size=12), CHUNKS)
def test_deliveries_taken_in_bulk_are_those_taken_one_by_one(kinds, chunks):
    """However the stream is cut, whatever stands between: each delivery comes once, in order, and the rest passes."""
    bytes_of = {
        "whole": (1, [b"body" * 60]),
        "empty": (1, []),
        "in pieces": (1, [b"one", b"two"]),
        "of another channel": (2, [b"other"]),
    }
    stream, expected, passing = b"", [], b""
    for tag, kind in enumerate(kinds, 1):
        if kind == "no delivery":
            part = frame.marshal(commands.Basic.CancelOk("consumer"), 1)
        elif kind == "broken":  # a content header of which no property can be read
            part = frame.marshal(commands.Basic.Deliver("consumer", tag, False, "e", "r"), 1)
            part += HEAD.pack(2, 1, 14) + b"\0\x3c" + b"\0" * 9 + b"\x01" + b"\xff\xff" + b"\xce"
            part += frame.marshal(ContentBody(b"x"), 1)
            expected.append((tag, False, b"x", "e", "r", True))
        else:
            channel, bodies = bytes_of[kind]
            body, redelivered = b"".join(bodies), tag % 3 == 0
            header = ContentHeader(body_size=len(body), properties=commands.Basic.Properties(message_id=str(tag)))
            parts = [commands.Basic.Deliver("consumer", tag, redelivered, "e", f"r{tag}"), header]
            part = b"".join(frame.marshal(each, channel) for each in [*parts, *map(ContentBody, bodies)])
            if channel == 1:
                expected.append((tag, redelivered, body, "e", f"r{tag}", False))
        stream += part
        if kind in ("no delivery", "of another channel"):
            passing += part
    arrived = []

    def note(tag: int, message: Message, expiration: str | None, remarks: Remarks | None) -> None:
        where = (message.exchange, message.routing_key)
        arrived.append((tag, message.redelivered, message.body, *where, remarks is not None))

    async def received() -> bytes:
        reader = asyncio.StreamReader(limit=2**24)
        tap, receiving = Tap(reader, asyncio.get_running_loop()), Receiving(note, closed=lambda: None)
        tap.attach(1, receiving, receiving.take_many)
        position = 0
        for size in [*chunks, len(stream)]:
            if piece := stream[position : position + size]:
                tap.data_received(piece)
            position += size
        reader.feed_eof()
        return await reader.read()

    assert asyncio.run(received()) == passing
    assert arrived == expected


@pytest.mark.parametrize(
    "other", [commands.Basic.ConsumeOk("tag"), commands.Basic.Cancel("tag"), commands.Channel.Close(404, "x", 0, 0)]
)
def test_what_is_no_delivery_is_left_to_aiormq(other):
    """Replies, cancels and closes pass by; of a close the channel is told at once."""
    closed: list[bool] = []
    receiving = Receiving(lambda *_: None, closed=lambda: closed.append(True))
    data = frame.marshal(other, 1)
    assert not receiving.take(data[0], data, HEAD.size, len(data) - 1)
    assert closed == [True] * isinstance(other, commands.Channel.Close)


@given(st.lists(st.builds(Ack, st.integers(1, 2**63 - 1), st.booleans()), max_size=5))
def test_acks_are_written_as_pamqp_writes_them(acks):
    """The frames of acks are byte for byte those of pamqp."""
    assert ack_frames(7, acks) == b"".join(
        frame.marshal(commands.Basic.Ack(ack.tag, multiple=ack.multiple), 7) for ack in acks
    )


@given(st.lists(st.builds(Nack, st.integers(1, 2**63 - 1)), max_size=5))
def test_messages_are_given_back_as_pamqp_writes_it(nacks):
    """A message that is given back is a nack of it alone, with requeue."""
    assert ack_frames(7, nacks) == b"".join(
        frame.marshal(commands.Basic.Nack(nack.tag, multiple=False, requeue=True), 7) for nack in nacks
    )


def test_a_decimal_header_survives():
    """A header of a type that relmsg never sends is still given to the handler."""
    header = ContentHeader(properties=commands.Basic.Properties(headers={"price": Decimal("1.50")})).marshal()
    assert message_of(header, "e", "r", b"")[0].headers == {"price": Decimal("1.50")}
