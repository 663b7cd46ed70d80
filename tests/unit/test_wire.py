"""Message and AMQP: what is sent is what arrives."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
from aiormq.abc import DeliveredMessage
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.constants import DOMAIN_REGEX
from pamqp.header import ContentHeader

from relmsg.broker.envelope import MAX_EXPIRATION_MS, Envelope, check, seal
from relmsg.broker.headers import RESERVED
from relmsg.broker.wire import copy_of, frames, publication, received
from relmsg.errors import InvalidMessage
from relmsg.message import Message

SMALLEST_FRAME_MAX = 4096  # AMQP 0-9-1, 4.2.3


def utf8(least: int, most_bytes: int) -> st.SearchStrategy[str]:
    """Text without NUL and surrogates, at most ``most_bytes`` long as UTF-8."""
    characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
    return st.text(characters, min_size=least, max_size=most_bytes).filter(lambda t: len(t.encode()) <= most_bytes)


NAMES = utf8(1, 128)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | utf8(0, 300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.dictionaries(NAMES.filter(lambda name: not name.startswith(RESERVED)), VALUES, max_size=6)
OPTIONAL = st.none() | utf8(1, 255)
ENVELOPES = st.builds(
    Envelope,
    message_id=utf8(1, 255),
    exchange=utf8(0, 255),
    routing_key=utf8(0, 255),
    body=st.binary(max_size=300) | st.integers(0, 3 * SMALLEST_FRAME_MAX).map(lambda n: b"\xce" * n),
    type=OPTIONAL,
    source=OPTIONAL,
    ordering_key=st.none() | utf8(1, 300),
    headers=HEADERS,
    content_type=OPTIONAL,
    content_encoding=OPTIONAL,
    correlation_id=OPTIONAL,
    reply_to=OPTIONAL,
    expiration_ms=st.none() | st.integers(1, MAX_EXPIRATION_MS),
    timestamp=st.none()
    | st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1), timezones=st.just(UTC)).map(
        lambda moment: moment.replace(microsecond=0)
    ),
)


def parsed(data: bytes) -> tuple[commands.Basic.Publish, ContentHeader, list[bytes], list[int]]:
    """What pamqp reads out of the bytes of one publish, with the sizes of the frames."""
    read, sizes = [], []
    while data:
        size, channel, part = frame.unmarshal(data)
        assert channel == 7
        read.append(part)
        sizes.append(size)
        data = data[size:]
    publish, header, *bodies = read
    assert isinstance(publish, commands.Basic.Publish)
    assert isinstance(header, ContentHeader)
    assert all(isinstance(part, ContentBody) for part in bodies)
    return publish, header, [part.value for part in bodies], sizes


def typed(value: object) -> object:
    """The value with the type of each part beside it: in Python True == 1."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)


def bare(body: bytes) -> Envelope:
    return Envelope(message_id="m", exchange="e", routing_key="r", headers={}, body=body)


@given(ENVELOPES)
@example(bare(b""))
@example(bare(b"x" * (SMALLEST_FRAME_MAX - 8)))
@example(bare(b"x" * (SMALLEST_FRAME_MAX - 7)))
@example(bare(b"x" * 2 * (SMALLEST_FRAME_MAX - 8)))
def test_what_is_sent_is_what_arrives(envelope):
    """Any envelope that keeps the rules goes over the wire, body in frames of any size, and comes back unchanged."""
    check(envelope)
    publish, header, bodies, sizes = parsed(frames(publication(envelope), 7, SMALLEST_FRAME_MAX))
    assert publish.mandatory
    assert not publish.immediate
    assert (publish.exchange, publish.routing_key) == (envelope.exchange, envelope.routing_key)
    assert header.body_size == len(envelope.body)
    assert all(size <= SMALLEST_FRAME_MAX for size in sizes[2:])
    assert len(bodies) == -(-len(envelope.body) // (SMALLEST_FRAME_MAX - 8))
    assert (header.properties.delivery_mode, header.properties.priority) == (2, 0)
    expiration = envelope.expiration_ms
    assert (header.properties.expiration or None) == (None if expiration is None else str(expiration))

    deliver = commands.Basic.Deliver("tag", 1, False, "", envelope.routing_key)
    deliver.exchange = envelope.exchange  # as pamqp does when it reads a frame: its own rules hold for writing only
    message = received(DeliveredMessage(delivery=deliver, header=header, body=b"".join(bodies), channel=None))
    headers = dict(message.headers)
    if envelope.ordering_key is not None:
        assert headers.pop("relmsg-key") == envelope.ordering_key
    assert headers == envelope.headers
    assert typed(headers) == typed(envelope.headers), "a bool stays a bool, an int an int"
    for name in ("type", "source", "content_type", "content_encoding", "correlation_id", "reply_to"):
        assert (getattr(message, name) or None) == getattr(envelope, name), name
    for name in ("body", "exchange", "routing_key", "ordering_key", "timestamp"):
        assert getattr(message, name) == getattr(envelope, name), name
    assert message.id == envelope.message_id


def as_pamqp(envelope: Envelope, user_id: str | None = None) -> bytes:
    """The header frame's payload and the body frames as pamqp makes them."""
    headers = dict(envelope.headers)
    if envelope.ordering_key is not None:
        headers["relmsg-key"] = envelope.ordering_key
    properties = commands.Basic.Properties(
        message_id=envelope.message_id,
        message_type=envelope.type,
        timestamp=envelope.timestamp,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        user_id=user_id,
        app_id=envelope.source,
        expiration=None if envelope.expiration_ms is None else str(envelope.expiration_ms),
        headers=headers or None,
        delivery_mode=2,
        priority=0,
    )
    room = SMALLEST_FRAME_MAX - 8
    header = ContentHeader(properties=properties, body_size=len(envelope.body))
    pieces = [envelope.body[start : start + room] for start in range(0, len(envelope.body), room)]
    return b"".join(frame.marshal(each, 7) for each in (header, *map(ContentBody, pieces)))


def without_integers(value):
    """The value with text in place of numbers: their types are of our own choice."""
    if isinstance(value, dict):
        return {name: without_integers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_integers(each) for each in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


@given(ENVELOPES, st.none() | st.text(min_size=1, max_size=60))
def test_our_bytes_are_those_of_pamqp(envelope, user_id):
    """The frames packed by hand are the very bytes pamqp would send, for any envelope without integer headers."""
    envelope = envelope._replace(headers=without_integers(envelope.headers))
    ours = frames(publication(envelope, user_id=user_id), 7, SMALLEST_FRAME_MAX)
    method_size = frame.unmarshal(ours)[0]
    assert ours[method_size:] == as_pamqp(envelope, user_id)
    if len(envelope.exchange) <= 127 and DOMAIN_REGEX["exchange-name"].fullmatch(envelope.exchange):
        publish = commands.Basic.Publish(0, envelope.exchange, envelope.routing_key, mandatory=True)
        assert ours[:method_size] == frame.marshal(publish, 7)


@pytest.mark.parametrize("value", [object(), {1}, 2**70, "\ud800", {"n" * 256: 1}])
def test_what_cannot_be_encoded_is_an_invalid_message(value):
    """P7: whatever error the encoder has for a value, it becomes InvalidMessage, with the message's id."""
    with pytest.raises(InvalidMessage, match="the-id cannot be encoded"):
        copy_of("the-id", "e", "r", commands.Basic.Properties(headers={"a": value}), b"")
    with pytest.raises(InvalidMessage, match="the-id cannot be encoded"):
        publication(bare(b"")._replace(message_id="the-id", headers={"a": value}))


@pytest.mark.parametrize("name", ["e" * 256, "ä" * 128])
def test_a_name_that_is_too_long_is_an_invalid_message(name):
    """An exchange or routing key over 255 bytes cannot be encoded, not even cut."""
    for exchange, key in ((name, "r"), ("e", name)):
        with pytest.raises(InvalidMessage, match="cannot be encoded"):
            copy_of("m", exchange, key, commands.Basic.Properties(), b"")
        with pytest.raises(InvalidMessage, match="cannot be encoded"):
            publication(bare(b"")._replace(exchange=exchange, routing_key=key))


def test_a_delivery_without_anything_is_still_a_message():
    """A publisher that sends no property at all is understood: nothing is made up."""
    deliver = commands.Basic.Deliver("tag", 1, False, "", "q")
    message = received(DeliveredMessage(delivery=deliver, header=ContentHeader(), body=b"x", channel=None))
    assert (message.id, message.type, message.source, message.ordering_key) == ("", None, None, None)
    assert (message.body, message.headers, message.routing_key, message.timestamp) == (b"x", {}, "q", None)


@pytest.mark.parametrize("key", [7, "", None, ["k"]])
def test_a_foreign_key_header_is_not_believed(key):
    """A relmsg-key header that is not a non-empty string is no ordering key."""
    header = ContentHeader(properties=commands.Basic.Properties(headers={"relmsg-key": key}))
    deliver = commands.Basic.Deliver("tag", 1, False, "", "q")
    assert received(DeliveredMessage(delivery=deliver, header=header, body=b"", channel=None)).ordering_key is None


WILD_TEXT = st.text(max_size=300) | st.text("\0ä\ud800x", max_size=300)
WILD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WILD_TEXT
    | st.binary(max_size=20)
    | st.lists(st.integers())
)
WILD_HEADERS = st.dictionaries(
    WILD_TEXT | st.integers(),
    st.recursive(WILD, lambda inner: st.dictionaries(WILD_TEXT, inner, max_size=3), max_leaves=4),
)
MESSAGES = st.builds(
    Message,
    type=WILD,
    body=WILD,
    exchange=WILD,
    routing_key=WILD,
    ordering_key=WILD,
    headers=WILD_HEADERS | WILD,
    id=WILD | st.uuids(),
    source=WILD,
    content_type=WILD,
    content_encoding=WILD,
    correlation_id=WILD,
    reply_to=WILD,
    expiration=WILD | st.timedeltas(),
    timestamp=WILD | st.datetimes() | st.datetimes(timezones=st.just(UTC)),
)
SOUND = Message(type="t", routing_key="q", source="s", timestamp=datetime(2026, 1, 1, tzinfo=UTC))


@given(MESSAGES, st.sets(st.sampled_from([each.name for each in fields(Message)]), max_size=3))
def test_what_passes_the_check_can_be_encoded(wild, names):
    """Whatever a caller puts into a message: it is refused with an InvalidMessage, or every byte of it can be sent."""
    message = replace(SOUND, **{name: getattr(wild, name) for name in names})
    try:
        envelope = seal(message)
    except InvalidMessage:
        return
    assert frames(publication(envelope), 1, SMALLEST_FRAME_MAX)
