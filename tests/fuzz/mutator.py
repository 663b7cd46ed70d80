"""Changes bytes that were captured from RabbitMQ, by chance that a seed decides."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.raw_amqp import nested, properties, table

CAPTURED = Path(__file__).with_name("captured.json")
SIZES = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LETTERS = b"tbBsuIilLfdDSAFTxV\0Z"
BODIES = (b"", b"{}", b"[" * 20_000, b"\xff\xfe", b"\x1f\x8b" + b"\0" * 30, b'{"id": 1e999}', b'"\\ud800"', b"\0" * 100)
KNOWN_NAMES = (
    b"relmsg-key", b"relmsg-half", b"relmsg-half-id", b"relmsg-half-group", b"relmsg-half-check",
    b"relmsg-half-resolution", b"relmsg-half-check-after", b"relmsg-error-reason", b"relmsg-failed-at",
    b"relmsg-error-attempts", b"x-death",
    b"relmsg-original-queue", b"relmsg-original-expiration", b"relmsg-body-size", b"x-message-id", b"x-correlation-id",
    b"message-signature", b"message-encryption", b"traceparent", b"x-delivery-count", b"x-exception-stacktrace",
)  # fmt: skip


class Sample(NamedTuple):
    """The payload of a content header frame, and a body."""

    header: bytes
    body: bytes


def captured() -> list[Sample]:
    """Messages of relmsg and of aio-pika, error copies, what the broker dead-lettered, prepare and check."""
    return [
        Sample(bytes.fromhex(each["header"]), bytes.fromhex(each["body"])) for each in json.loads(CAPTURED.read_text())
    ]


def crafted() -> list[Sample]:
    """What has hurt before: strings that grow when they are made readable, and depth."""
    told = [
        properties(**{name: b"\xff" * size})
        for name in ("message_id", "type", "app_id", "correlation_id", "reply_to", "content_type", "user_id")
        for size in (86, 255)
    ]
    told += [properties(message_id=b"deep", headers=table((b"h", nested(depth)))) for depth in (31, 32, 33, 480, 3000)]
    told += [properties(message_id=b"time", timestamp=struct.pack(">Q", number)) for number in (2**63, 2**64 - 1)]
    return [Sample(struct.pack(">HHQ", 60, 0, 2) + each, b"{}") for each in told]


class Mutator:
    """Makes one changed sample after another; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._samples = [*captured(), *crafted()]
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._overwrite, self._remove, self._repeat, self._size, self._letter, self._splice,
            self._strange_header, self._flags, self._cut,
        )  # fmt: skip

    def next(self) -> Sample:
        """The next one."""
        chance = self._chance
        sample = chance.choice(self._samples)
        header = bytearray(sample.header)
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 6))):
            chance.choice(self._ways)(header)
        body = sample.body if chance.random() < 0.7 else chance.choice(BODIES)
        head = struct.pack(">HHQ", 60, 0, len(body))
        return Sample(head + bytes(header[len(head) :]), body)

    def _at(self, data: bytearray) -> int:
        return self._chance.randrange(12, max(13, len(data)))

    def _flip(self, data: bytearray) -> None:
        if len(data) > (place := self._at(data)):
            data[place] ^= 1 << self._chance.randrange(8)

    def _overwrite(self, data: bytearray) -> None:
        place, size = self._at(data), self._chance.randrange(1, 100)
        data[place : place + size] = bytes((self._chance.choice((0, 0x1B, 0x7F, 0xC3, 0xE2, 0xFF)),)) * size

    def _remove(self, data: bytearray) -> None:
        place = self._at(data)
        del data[place : place + self._chance.randrange(1, 20)]

    def _repeat(self, data: bytearray) -> None:
        place = self._at(data)
        data[place:place] = data[place : place + self._chance.randrange(1, 60)] * self._chance.randrange(1, 5)

    def _size(self, data: bytearray) -> None:
        place = self._at(data)
        data[place : place + 4] = struct.pack(">I", self._chance.choice(SIZES))

    def _letter(self, data: bytearray) -> None:
        if len(data) > (place := self._at(data)):
            data[place] = self._chance.choice(LETTERS)

    def _splice(self, data: bytearray) -> None:
        other, place = self._chance.choice(self._samples).header, self._at(data)
        data[place:] = other[min(place, len(other)) :]

    def _strange_header(self, data: bytearray) -> None:
        """Put nothing but headers that relmsg reads there, with values of any type."""
        values = [bytes((self._chance.choice(LETTERS),)) + self._chance.randbytes(self._chance.randrange(12))]
        values += [b"V", b"t\x01", nested(self._chance.randrange(40)), b"S\0\0\0\x03\xff\x1b\x9b", b"x\0\0\0\x02\0\xff"]
        entries = [(name, self._chance.choice(values)) for name in self._chance.sample(KNOWN_NAMES, 4)]
        data[12:] = properties(message_id=b"strange", headers=table(*entries))

    def _flags(self, data: bytearray) -> None:
        data[12:14] = self._chance.randbytes(2)

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]
