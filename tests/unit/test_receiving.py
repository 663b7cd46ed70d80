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

from relmsg.broker.acks import Ack, Nack
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
    return message, read.properties.expiration, read.properties.user_id


@given(PROPERTIES)
def test_headers_are_read_as_pamqp_reads_them(properties):
    """Any header that pamqp can write is read to the same message as pamqp reads it to."""
    header = ContentHeader(properties=properties, body_size=0).marshal()
    message, expiration, user_id, fault = message_of(header, "e", "r", b"")
    assert fault is None
    assert (message, expiration, user_id) == by_pamqp(header)
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
    message, *_, fault = message_of(header.replace(b"x?z", b"x\xe4z"), "e", "r", b"body")
    assert isinstance(fault, UnicodeDecodeError)
    assert (message.id, message.type, message.body) == ("x\ufffdz", "t", b"body")


def test_an_unknown_field_type_is_a_fault_of_its_message():
    """B1: a header value of a type that AMQP 0-9-1 does not have leaves the properties beside it readable."""
    properties = commands.Basic.Properties(
        headers={"a": True}, message_id="m", timestamp=datetime(2026, 1, 1, tzinfo=UTC)
    )
    header = ContentHeader(properties=properties).marshal().replace(b"\x01at\x01", b"\x01aq\x01")
    message, *_, fault = message_of(header, "e", "r", b"")
    assert fault is not None
    assert (message.id, message.headers) == ("m", {})


def test_a_timestamp_beyond_all_calendars_is_a_fault_of_its_message():
    """A timestamp that no datetime can hold is left out, and said to be at fault."""
    properties = commands.Basic.Properties(timestamp=datetime(2026, 1, 1, tzinfo=UTC), message_id="m")
    header = ContentHeader(properties=properties).marshal()
    seconds = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()).to_bytes(8, "big")
    message, *_, fault = message_of(header.replace(seconds, b"\xff" * 8), "e", "r", b"")
    assert fault is not None
    assert (message.id, message.timestamp) == ("m", None)


@given(st.lists(st.tuples(st.binary(max_size=50), st.integers(1, 60), st.booleans()), max_size=8))
def test_frames_become_messages(sent):
    """Bodies in any number of frames are put together, in order, each with its tag; nothing else is taken."""
    arrived: list[tuple[int, bool, bytes, str]] = []
    receiving = Receiving(
        lambda tag, redelivered, message, *_: arrived.append((tag, redelivered, message.body, message.routing_key)),
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

    def note(tag: int, redelivered: bool, message: Message, *aside: object) -> None:
        *_, fault = aside
        where = (message.exchange, message.routing_key)
        arrived.append((tag, redelivered, message.body, *where, fault is not None))

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
