"""Numbers that all have one hash stop no consumer."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pydantic
import pytest

from relmsg.codec import decoder_for
from relmsg.errors import Undecodable

P = sys.hash_info.modulus
COUNT = 6_000  # half a second and more, where each is compared with all before it


class Struct(msgspec.Struct):
    by_number: dict[int, int] = {}
    numbers: set[int] = set()
    ids: set[UUID] = set()


@dataclasses.dataclass
class Data:
    by_number: dict[int, int] = dataclasses.field(default_factory=dict)
    numbers: frozenset[int] = frozenset()
    ids: set[UUID] = dataclasses.field(default_factory=set)


class Model(pydantic.BaseModel):
    by_number: dict[int, int] = {}
    numbers: set[int] = set()
    ids: set[UUID] = set()


def body(field: str, numbers: list[int]) -> bytes:
    if field == "by_number":
        return json.dumps({field: {str(each): 1 for each in numbers}}).encode()
    return json.dumps({field: [str(UUID(int=each)) if field == "ids" else each for each in numbers]}).encode()


@pytest.mark.parametrize("field", ["by_number", "numbers", "ids"])
@pytest.mark.parametrize("target", [Struct, Data, Model])
def test_numbers_of_one_hash_are_refused_at_once(target: Any, field: str) -> None:
    """A body of thousands of numbers or UUIDs with one hash is undecodable, before a dict or set is made of them."""
    decode = decoder_for(target)
    assert decode is not None
    flood = body(field, [7 + P * (10**9 + each) for each in range(COUNT)])
    began = time.process_time()
    with pytest.raises(Undecodable, match="one hash"):
        decode(flood)
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize(
    "write",
    [
        lambda number: "".join(f"\\u00{ord(digit):02x}" for digit in str(number)),
        lambda number: f"{str(number)[:5]}_{str(number)[5:]}",
        lambda number: f"-{number}",
    ],
    ids=["escaped", "underscores", "negative"],
)
def test_no_other_way_of_writing_them_passes(write: Any) -> None:
    """Digits as JSON escapes, with underscores as pydantic takes them, and with a sign, are the same numbers."""
    decode = decoder_for(Model)
    assert decode is not None
    keys = ", ".join(f'"{write(P * (10**9 + each))}": 1' for each in range(COUNT))
    with pytest.raises(Undecodable, match="one hash"):
        decode(f'{{"by_number": {{{keys}}}}}'.encode())


def test_a_uuid_of_digits_is_read_as_one() -> None:
    """UUIDs that look like decimal numbers are told by their hash as UUIDs."""
    chance = random.Random(7)
    fronts = (int(str(chance.randrange(10**15, 10**16)), 16) << 64 for _ in range(6_000))
    ids = [each for each in (f"{front + P - front % P:032x}" for front in fronts) if each[:21].isdigit()]
    decode = decoder_for(Struct)
    assert decode is not None
    assert len(ids) > 200
    with pytest.raises(Undecodable, match="one hash"):
        decode(json.dumps({"ids": ids, "pad": "x" * 20_000}).encode())


def test_a_dict_by_number_alone_is_guarded_too() -> None:
    """The event itself may be a dict whose keys are numbers."""
    decode = decoder_for(dict[int, int])
    assert decode is not None
    with pytest.raises(Undecodable, match="one hash"):
        decode(json.dumps({str(P * (10**9 + each)): 1 for each in range(COUNT)}).encode())


@pytest.mark.parametrize("field", ["by_number", "numbers", "ids"])
@pytest.mark.parametrize("target", [Struct, Data, Model])
def test_honest_numbers_of_any_size_are_decoded(target: Any, field: str) -> None:
    """Thousands of random UUIDs as numbers, and as many copies of one, are what they are."""
    decode = decoder_for(target)
    assert decode is not None
    numbers = [uuid4().int for _ in range(COUNT)]
    assert len(getattr(decode(body(field, numbers)), field)) == COUNT
    assert len(getattr(decode(body(field, [numbers[0]] * COUNT)), field)) == 1
