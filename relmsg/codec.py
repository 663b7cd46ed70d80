"""Bodies: from a Python value to bytes and a content type, and back to what a handler asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import msgspec

from relmsg.errors import BodyNotEncodable, Undecodable
from relmsg.exceptions import text_of
from relmsg.hash_flood import require_spread_hashes

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
BYTE_ORDER_MARK = "\ufeff".encode()
MAX_SHOWN_DEPTH = 200


def encode_body(body: object) -> tuple[bytes, str]:
    """The bytes and the content type of a body.

    bytes stay as they are, str becomes UTF-8; dict, list, tuple, dataclass, ``msgspec.Struct`` and pydantic models
    become JSON. What is stored is what is sent: nothing is encoded a second time.

    :raises BodyNotEncodable: for any other type, and for values JSON does not know, such as NaN.
    """
    try:
        if isinstance(body, bytes | bytearray | memoryview):
            return bytes(body), BINARY
        if isinstance(body, str):
            return body.encode(), TEXT
        if is_pydantic(type(body)):
            raw = body.model_dump_json().encode()  # type: ignore[attr-defined]
            return _with_finite_numbers(raw, body), JSON
        if isinstance(body, dict | list | tuple | msgspec.Struct) or dataclasses.is_dataclass(body):
            return _with_finite_numbers(msgspec.json.encode(body, enc_hook=_encode_pydantic), body), JSON
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BodyNotEncodable(f"the body cannot be encoded: {text_of(error)}") from error
    raise BodyNotEncodable(
        f"a body of type {type(body).__name__} cannot be sent: give bytes, str, dict, list, a dataclass, "
        "a msgspec.Struct or a pydantic model"
    )


def decoder_for(target: Any) -> Callable[[bytes], Any] | None:
    """A function from body bytes to a value of type ``target``, or None if relmsg cannot decode into that type.

    The function raises Undecodable, with the reason, when the bytes are not what the type asks for. Types: bytes, str,
    dict, list (also with item types), dataclasses, ``msgspec.Struct`` and pydantic models. A byte order mark of UTF-8
    before text or JSON is skipped.
    """
    if target is bytes:
        return bytes
    if target is str:
        return lambda body: _decode(lambda raw: raw.decode(), body)
    if is_pydantic(target):
        return lambda body: _decode_into_types(target.model_validate_json, body)
    origin = getattr(target, "__origin__", target)
    is_struct = isinstance(origin, type) and issubclass(origin, msgspec.Struct)
    if origin in (dict, list) or is_struct or dataclasses.is_dataclass(origin):
        decode = msgspec.json.Decoder(target).decode
        if target in (dict, list):
            return lambda body: _decode(decode, body)
        return lambda body: _decode_into_types(decode, body)
    return None


def readable_json(text: bytes | str) -> Any:
    """The value of JSON text that is to be shown, and so has to be encoded again.

    :raises ValueError: it is no JSON, or is nested deeper than 200 levels: some of that can be decoded and not encoded.
    """
    try:
        content = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(text_of(error)) from error
    level = [content]
    for _ in range(MAX_SHOWN_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return content
    raise ValueError(f"nested deeper than {MAX_SHOWN_DEPTH} levels")


def is_pydantic(target: Any) -> bool:
    """Whether a type is a pydantic (version 2) model; pydantic itself is never imported."""
    return isinstance(target, type) and hasattr(target, "model_validate_json") and hasattr(target, "model_fields")


def _with_finite_numbers(raw: bytes, body: object) -> bytes:
    """The bytes, if no number was lost: msgspec and pydantic both write NaN and infinities as null, without a word."""
    if b"null" in raw and _has_infinite(msgspec.to_builtins(body, enc_hook=_as_builtins)):
        raise ValueError("JSON has no NaN and no infinity, they would arrive as null")
    return raw


def _has_infinite(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_infinite, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_infinite, value))
    return isinstance(value, float) and not math.isfinite(value)


def _as_builtins(value: Any) -> Any:
    return value.model_dump() if is_pydantic(type(value)) else str(value)


def _encode_pydantic(value: Any) -> Any:
    if is_pydantic(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not known to JSON")


def _decode_into_types(decode: Callable[[bytes], Any], body: bytes) -> Any:
    require_spread_hashes(body)
    return _decode(decode, body)


def _decode(decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode(body.removeprefix(BYTE_ORDER_MARK))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Undecodable(f"the body is not what the handler expects: {text_of(error)}") from error
