"""Every rule of the envelope, its error, and the last value that still passes."""

from __future__ import annotations

import collections
import enum
import math
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from relmsg.broker.encode import table
from relmsg.broker.envelope import MAX_BODY_BYTES, MAX_EXPIRATION_MS, MAX_KEY_BYTES, outbox_id, seal
from relmsg.broker.headers import MAX_BYTES, MAX_DEPTH, _is_plain, check_headers, encoded_size
from relmsg.broker.wire import frames, publication
from relmsg.errors import (
    BodyNotEncodable,
    BodyTooLarge,
    ExpirationNotPositive,
    HeaderNameRefused,
    HeaderRefused,
    HeadersTooLarge,
    InvalidMessage,
    PropertyRefused,
)
from relmsg.message import Message


class Colour(enum.IntEnum):
    RED = 7


class Word(enum.StrEnum):
    HELLO = "hello"


def nested(depth: int) -> object:
    """A list in a list in a list …, ``depth`` lists in all."""
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def circle() -> list:
    made: list = []
    made.append(made)
    return made


def headers_of(size: int) -> dict[str, str]:
    """Headers that take exactly ``size`` bytes as an AMQP table."""
    made = {"h": "x" * (size - encoded_size({"h": ""}))}
    assert encoded_size(made) == size
    return made


SHORT = ("exchange", "routing_key", "type", "source", "content_type", "content_encoding", "correlation_id", "reply_to")

BROKEN = [
    # header names
    *[({"headers": {name: 1}}, HeaderNameRefused, "belong to RabbitMQ and relmsg") for name in
      ("x-death", "x-", "relmsg-key", "CC", "BCC", "CCTV")],
    ({"headers": {"": 1}}, HeaderNameRefused, "non-empty"),
    ({"headers": {5: 1}}, HeaderNameRefused, "non-empty strings, not 5"),
    ({"headers": {None: 1}}, HeaderNameRefused, "non-empty strings"),
    ({"headers": {"n" * 129: 1}}, HeaderNameRefused, "129 bytes, at most 128"),
    ({"headers": {"ä" * 64 + "n": 1}}, HeaderNameRefused, "129 bytes, at most 128"),
    ({"headers": {"a": {"b": [{"n" * 129: 1}]}}}, HeaderNameRefused, "129 bytes, at most 128"),
    ({"headers": {"a": {1: 1}}}, HeaderNameRefused, "non-empty strings"),
    # header values
    *[({"headers": {"a": value}}, HeaderRefused, reason) for value, reason in (
        (1.5, "float would lose digits"),
        (math.nan, "float would lose digits"),
        (b"x", "a bytes cannot be sent"),
        ((1,), "a tuple cannot be sent"),
        ({1, 2}, "a set cannot be sent"),
        (datetime.now(UTC), "a datetime cannot be sent"),
        (UUID(int=1), "a UUID cannot be sent"),
        (object(), "a object cannot be sent"),
        (collections.UserDict(a=1), "a UserDict cannot be sent"),
        (2**63, "64 bits does not fit"),
        (-(2**63) - 1, "does not fit into 64"),
        (10**6000, "does not fit into 64"),
        ("a\0b", "NUL"),
        ("\ud800", "not valid Unicode"),
        ([1, [2, {"deep": 1.5}]], r"headers\['a'\]\[1\]\[1\]\['deep'\]: a float"),
        (nested(MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (nested(900), f"nested more than {MAX_DEPTH} deep"),
        (circle(), f"nested more than {MAX_DEPTH} deep"),
    )],
    ({"headers": {"a\0": 1}}, HeaderRefused, "NUL"),
    ({"headers": {"\ud800": 1}}, HeaderRefused, "not valid Unicode"),
    ({"headers": None}, HeaderRefused, "headers are a mapping"),
    ({"headers": [("a", 1)]}, HeaderRefused, "headers are a mapping"),
    ({"headers": "a"}, HeaderRefused, "headers are a mapping"),
    # size
    ({"headers": headers_of(MAX_BYTES + 1)}, HeadersTooLarge, "16385 bytes, at most 16384"),
    ({"headers": headers_of(MAX_BYTES), "ordering_key": "k"}, HeadersTooLarge, "16385 bytes"),
    ({"headers": {str(n): n for n in range(5000)}}, HeadersTooLarge, "put data into the body"),
    ({"body": b"x" * (MAX_BODY_BYTES + 1)}, BodyTooLarge, "1048577 bytes, at most 1048576"),
    ({"body": "ä" * (MAX_BODY_BYTES // 2) + "x"}, BodyTooLarge, "1048577 bytes"),
    ({"body": object()}, BodyNotEncodable, "type object cannot be sent"),
    # expiration
    *[({"expiration": value}, ExpirationNotPositive, "positive") for value in
      (0, -1, -0.0001, timedelta(0), timedelta(seconds=-1))],
    *[({"expiration": value}, PropertyRefused, "a timedelta or a number of seconds") for value in
      (math.nan, math.inf, -math.inf, "soon", object())],
    ({"expiration": timedelta(milliseconds=MAX_EXPIRATION_MS + 1)}, PropertyRefused, "ten years"),
    # AMQP's short strings
    *[({name: "x" * 256}, PropertyRefused, f"{name} takes 256 bytes, AMQP carries at most 255") for name in SHORT],
    *[({name: "ä" * 128}, PropertyRefused, f"{name} takes 256 bytes") for name in SHORT],
    *[({name: "a\0b"}, PropertyRefused, f"{name} holds a NUL") for name in SHORT],
    *[({name: "\ud800"}, PropertyRefused, f"{name} is not valid Unicode") for name in SHORT],
    *[({name: 5}, PropertyRefused, f"{name} is a string, not int") for name in SHORT],
    *[({name: None}, PropertyRefused, f"{name} is a string, not NoneType") for name in ("exchange", "routing_key")],
    # identity, order, time
    ({"id": ""}, PropertyRefused, "message_id is empty"),
    ({"id": None}, PropertyRefused, "message_id is a string, not NoneType"),
    ({"id": 5}, PropertyRefused, "message_id is a string, not int"),
    ({"id": "x" * 256}, PropertyRefused, "message_id takes 256 bytes"),
    ({"ordering_key": ""}, PropertyRefused, "ordering_key is empty"),
    ({"ordering_key": 7}, PropertyRefused, "ordering_key is a string, not int"),
    ({"ordering_key": "a\0"}, PropertyRefused, "ordering_key holds a NUL"),
    ({"ordering_key": "\ud800"}, PropertyRefused, "ordering_key is not valid Unicode"),
    ({"ordering_key": "x" * (MAX_KEY_BYTES + 1)}, PropertyRefused, "ordering_key takes 1025 bytes, at most 1024"),
    ({"timestamp": datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)}, PropertyRefused, "before 1970"),
    ({"timestamp": datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC)}, PropertyRefused, "after 2106"),
    ({"timestamp": datetime.max}, PropertyRefused, "after 2106"),
    ({"timestamp": datetime.min}, PropertyRefused, "before 1970"),
    ({"timestamp": 1_700_000_000}, PropertyRefused, "timestamp is a datetime, not int"),
]  # fmt: skip


def _name(value: object) -> str | None:
    return ",".join(map(str, value))[:40] if isinstance(value, dict) else getattr(value, "__name__", None)


@pytest.mark.parametrize(("given", "error", "rule"), BROKEN, ids=_name)
def test_a_broken_rule_raises_its_own_error(given, error, rule):
    """Each rule that a message breaks raises the error of that rule, with the rule in its text."""
    with pytest.raises(error, match=rule) as told:
        seal(Message(**given))
    assert type(told.value) is error
    assert isinstance(told.value, InvalidMessage)
    assert not told.value.retryable


AT_THE_LIMIT = [
    {"headers": {"n" * 128: 1}},
    {"headers": {"ä" * 64: 1}},
    {"headers": {"😀" * 32: {"😀" * 32: "v"}}},
    {"headers": {"X-upper": 1, "Relmsg-": 1, "cc": 1, "bcc": 1, "x": 1, "a.x-b": {"x-inner": 1}}},
    {"headers": {"a": 2**63 - 1, "b": -(2**63), "c": [True, False, None, "", 0, [], {}]}},
    {"headers": {"a": Colour.RED, "b": Word.HELLO}},
    {"headers": {"a": nested(MAX_DEPTH)}},
    {"headers": headers_of(MAX_BYTES)},
    {"headers": collections.UserDict(a=1)},
    {"body": b"x" * MAX_BODY_BYTES},
    {"body": ""},
    {"exchange": "e" * 255, "routing_key": "r" * 255},
    {"exchange": "ä" * 127 + "e", "routing_key": "😀" * 63 + "abc"},
    {"exchange": "", "routing_key": ""},
    {"exchange": "any/thing & <more>\n", "routing_key": "with blanks.#*"},
    dict.fromkeys(SHORT, "x" * 255),
    {"ordering_key": "k" * MAX_KEY_BYTES},
    {"expiration": 0.001},
    {"expiration": timedelta(milliseconds=1)},
    {"expiration": timedelta(microseconds=1)},
    {"expiration": timedelta(milliseconds=MAX_EXPIRATION_MS)},
    {"timestamp": datetime(1970, 1, 1, tzinfo=UTC)},
    {"timestamp": datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)},
    {"id": "x" * 255},
]


@pytest.mark.parametrize("given", AT_THE_LIMIT, ids=_name)
def test_what_just_keeps_the_rules_passes_and_can_be_encoded(given):
    """A message exactly at a limit is sealed, and its frames can be built."""
    envelope = seal(Message(**given))
    assert frames(publication(envelope), 1, 131_072)


def test_the_cap_of_the_body_can_be_set():
    """max_body_bytes moves the cap, in either direction."""
    with pytest.raises(BodyTooLarge, match="3 bytes, at most 2 "):
        seal(Message(body=b"abc"), max_body_bytes=2)
    assert seal(Message(body=b"x" * (MAX_BODY_BYTES + 1)), max_body_bytes=MAX_BODY_BYTES + 1)


@pytest.mark.parametrize(
    ("expiration", "milliseconds"),
    [(None, None), (1, 1000), (1.5, 1500), (0.0001, 1), (0.0015, 2), (timedelta(days=1), 86_400_000)],
)
def test_an_expiration_is_sent_in_whole_milliseconds(expiration, milliseconds):
    """Seconds and timedeltas become milliseconds; what is more than nothing never becomes 0, which would drop."""
    assert seal(Message(expiration=expiration)).expiration_ms == milliseconds


def test_the_own_source_wins_over_the_default():
    """A message that names its source keeps it, another one gets the publisher's."""
    assert seal(Message(source="mine"), source="default").source == "mine"
    assert seal(Message(), source="default").source == "default"
    assert seal(Message()).source is None


def test_the_content_type_follows_from_the_body_unless_given():
    """An explicit content type wins; an empty one sends none."""
    assert seal(Message(body={})).content_type == "application/json"
    assert seal(Message(body={}, content_type="application/cloudevents+json")).content_type == (
        "application/cloudevents+json"
    )
    assert seal(Message(body={}, content_type="")).content_type is None


def test_the_trace_context_joins_the_headers():
    """Inside of a span the headers carry its traceparent; a header of the same name in the message wins."""
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        assert seal(Message(headers={"a": 1})).headers == {"a": 1, "traceparent": f"00-{1:032x}-{2:016x}-01"}
        assert seal(Message(headers={"traceparent": "mine"})).headers == {"traceparent": "mine"}
    assert seal(Message()).headers == {}


def test_the_outbox_takes_uuids_only():
    """The outbox stores UUIDs; another id raises and tells how to make one of it."""
    made = Message()
    assert outbox_id(made) == made.id
    assert outbox_id(Message(id=str(made.id))) == made.id
    for wrong in ("order-7", "", None, 7):
        with pytest.raises(PropertyRefused, match=r"is not a UUID: use Message\.id_for"):
            outbox_id(Message(id=wrong))


NAMES = st.text(max_size=130) | st.sampled_from(["x-a", "relmsg-a", "CC", "BCC", "n" * 128, "n" * 129, "a\0", "\ud800"])
PLAIN = (
    st.text(max_size=40)
    | st.sampled_from(["a\0", "\ud800", "x" * MAX_BYTES, "x" * (MAX_BYTES - 20), Word.HELLO, Colour.RED, b"x", 1.5])
    | st.integers(-(2**64), 2**64)
    | st.booleans()
    | st.none()
    | st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(NAMES | st.integers(), PLAIN, max_size=8), st.integers(0, MAX_BYTES))
@example({"h": "x" * (MAX_BYTES - 15)}, 0)
@example({"h": 2**63}, 0)
@example({}, MAX_BYTES)
def test_the_quick_look_at_headers_passes_nothing_that_the_rules_refuse(headers, reserved):
    """Whatever headers the quick look lets through, the full check lets through as well, and they can be encoded."""
    if not _is_plain(headers, MAX_BYTES - reserved):
        return
    # No dict by its class, so the quick look does not see it.
    check_headers(collections.UserDict(headers), reserved_bytes=reserved)
    assert len(table(headers)) + reserved <= MAX_BYTES


def test_the_quick_look_passes_headers_like_most():
    """Flat headers under names in ASCII need no second look, at the limit of every kind of value."""
    assert _is_plain({"a": "ä", "n" * 128: 2**63 - 1, "c": -(2**63), "d": None, "e": True}, MAX_BYTES)


@pytest.mark.parametrize(
    "spelt", [str.upper, "{{{}}}".format, "urn:uuid:{}".format, lambda text: text.replace("-", "")]
)
def test_an_id_in_another_spelling_is_refused(spelt):
    """F4: the outbox would send another text than was given; it refuses, and says what to give."""
    given = spelt("6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11")
    with pytest.raises(PropertyRefused, match=r"would be sent as '6f1c9d0a-.*: give UUID"):
        outbox_id(Message(id=given))
