"""Bodies to bytes, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relmsg.codec import BINARY, JSON, TEXT, decoder_for, encode_body, is_pydantic
from relmsg.errors import BodyNotEncodable, Undecodable


class Model(pydantic.BaseModel):
    number: float
    extra: dict[str, object] = {}


class Struct(msgspec.Struct):
    number: float
    name: str = "n"


@dataclasses.dataclass
class Plain:
    number: float
    name: str = "n"


@dataclasses.dataclass
class Nested:
    model: Model
    plain: Plain


@pytest.mark.parametrize(
    ("body", "sent", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", BINARY),
        (bytearray(b"ab"), b"ab", BINARY),
        pytest.param(memoryview(b"abc")[1:], b"bc", BINARY, id="memoryview"),  # the name has an address otherwise
        (b"", b"", BINARY),
        ("Grüße", "Grüße".encode(), TEXT),
        ("", b"", TEXT),
        ({"a": [1, None, True, "x"]}, b'{"a":[1,null,true,"x"]}', JSON),
        ({1: 2}, b'{"1":2}', JSON),
        ([1, 2], b"[1,2]", JSON),
        ((1, 2), b"[1,2]", JSON),
        ({}, b"{}", JSON),
        (Plain(1.5), b'{"number":1.5,"name":"n"}', JSON),
        (Struct(1.5), b'{"number":1.5,"name":"n"}', JSON),
        (Model(number=1.5), b'{"number":1.5,"extra":{}}', JSON),
        (
            Nested(Model(number=1.5), Plain(2.5)),
            b'{"model":{"number":1.5,"extra":{}},"plain":{"number":2.5,"name":"n"}}',
            JSON,
        ),
        ([Model(number=1.5)], b'[{"number":1.5,"extra":{}}]', JSON),
        ({"big": 2**70}, b'{"big":1180591620717411303424}', JSON),
    ],
    ids=repr,
)
def test_a_body_becomes_bytes_and_a_content_type(body, sent, content_type):
    """Every kind of body has one encoding and one content type."""
    assert encode_body(body) == (sent, content_type)


def test_the_bytes_are_a_copy():
    """What is stored does not change with the buffer it was taken from."""
    buffer = bytearray(b"before")
    sent, _ = encode_body(buffer)
    buffer[:] = b"after!"
    assert sent == b"before"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [lambda n: {"number": n}, Plain, Struct, lambda n: Model(number=n)])
def test_a_number_json_does_not_know_is_refused(number, make):
    """NaN and infinities are refused: msgspec and pydantic would both send null, without a word."""
    with pytest.raises(BodyNotEncodable, match="NaN"):
        encode_body(make(number))


def test_null_itself_is_sent():
    """None among the values of a body is nothing to complain of."""
    assert encode_body({"a": None, "b": [None, 1.5]}) == (b'{"a":null,"b":[null,1.5]}', "application/json")


def _circle() -> list:
    circle: list = []
    circle.append(circle)
    return circle


def _circular_model() -> Model:
    model = Model(number=1)
    model.extra["self"] = model
    return model


def _deep() -> list:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (5, "type int"),
        (None, "type NoneType"),
        (1.5, "type float"),
        ({1, 2}, "type set"),
        (object(), "type object"),
        ({"a": object()}, "object is not known to JSON"),
        ({(1, 2): 3}, "tuple is not known to JSON"),
        (Plain, "type is not known to JSON"),
        ("\ud800", "surrogates not allowed"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ({"\ud800": 1}, "surrogates not allowed"),
        (Plain(1, "\ud800"), "surrogates not allowed"),
        (Model(number=1, extra={"a": "\ud800"}), "surrogates not allowed"),
        (_circle(), "recursion"),
        (_deep(), "recursion"),
        (_circular_model(), "Circular reference"),
        ([_circular_model()], "Circular reference"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else type(value).__name__,
)
def test_what_cannot_be_encoded_raises_with_the_reason(body, reason):
    """A body that cannot become bytes raises BodyNotEncodable and says why."""
    with pytest.raises(BodyNotEncodable, match=reason):
        encode_body(body)


@pytest.mark.parametrize(
    ("target", "body", "value"),
    [
        (bytes, b"\xff", b"\xff"),
        (str, "Grüße".encode(), "Grüße"),
        (dict, b'{"a":1}', {"a": 1}),
        (dict[str, int], b'{"a":1}', {"a": 1}),
        (list, b"[1]", [1]),
        (list[Plain], b'[{"number":1}]', [Plain(1)]),
        (Plain, b'{"number":1,"unknown":2}', Plain(1)),
        (Struct, b'{"number":1}', Struct(1)),
        (Model, b'{"number":1}', Model(number=1)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_body_becomes_what_the_handler_asks_for(target, body, value):
    """Each type that a handler may ask for has a decoder."""
    decode = decoder_for(target)
    assert decode is not None
    assert decode(body) == value
    assert type(decode(body)) is type(value)


@pytest.mark.parametrize("target", [int, float, None, set, object, "dict", int | None, Plain | None, tuple])
def test_other_types_have_no_decoder(target):
    """For a type that relmsg cannot decode into there is no decoder, so that registration can refuse it."""
    assert decoder_for(target) is None


@pytest.mark.parametrize(
    ("target", "body", "reason"),
    [
        (str, b"\xff", "can't decode byte 0xff"),
        (dict, b"", "truncated"),
        (dict, b"\xff", "malformed"),
        (dict, b"[1]", "got `array`"),
        (dict, b'{"a":' * 100_000, "recursion"),
        (dict[str, int], b'{"a":"b"}', "Expected `int`, got `str`"),
        (list, b"{}", "got `object`"),
        (Plain, b"{}", "missing required field `number`"),
        (Plain, b'{"number":"x"}', "Expected `float`, got `str`"),
        # The words of msgspec before and since 0.23.
        (Plain, b'{"number":1,"name":"\xed\xa0\x80"}', "can't decode byte 0xed|Invalid UTF-8"),
        (Struct, b"null", "Expected `object`, got `null`"),
        (Model, b"{}", "Field required"),
        (Model, b"\xff", "Invalid JSON"),
        (Model, b'{"extra":' * 100_000, "recursion"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:30],
)
def test_a_body_that_does_not_fit_is_undecodable_with_the_reason(target, body, reason):
    """A body that is not what the type asks for raises Undecodable and says where it differs."""
    decode = decoder_for(target)
    assert decode is not None
    with pytest.raises(Undecodable, match=reason) as told:
        decode(body)
    assert told.value.__cause__ is not None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_a_dict_comes_back_as_it_was(body):
    """Encoding and decoding a dict of JSON values changes nothing."""
    decode = decoder_for(dict)
    assert decode is not None
    assert decode(encode_body(body)[0]) == body


@given(st.binary())
def test_any_bytes_are_decoded_or_undecodable(body):
    """Whatever bytes arrive, a decoder returns a value or raises Undecodable, never anything else."""
    for target in (str, dict, list, Plain, Struct, Model):
        decode = decoder_for(target)
        assert decode is not None
        with contextlib.suppress(Undecodable):
            decode(body)


def test_a_pydantic_model_is_known_by_its_methods():
    """pydantic models are recognised without importing pydantic; instances and other classes are not."""
    assert is_pydantic(Model)
    assert not is_pydantic(Model(number=1))
    assert not is_pydantic(Plain)
