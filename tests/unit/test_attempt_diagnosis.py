"""The headers of an error copy: complete, sendable, and never over 16 KiB."""

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from pamqp import decode

from relmsg.broker import error_headers as names
from relmsg.broker.diagnosis import error_headers
from relmsg.broker.headers import MAX_BYTES, encoded_size
from relmsg.broker.subscriber import Delivery
from relmsg.inbox.outcome import Failed
from relmsg.message import Message

AT = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


@dataclass
class Came:
    """What a delivery shows of itself to the diagnosis."""

    headers: dict[str, Any] = field(default_factory=dict)
    queue: str = "billing.orders"
    expiration: str | None = None

    @property
    def message(self) -> Message:
        return Message(id="1", exchange="shop", routing_key="order.placed", headers=self.headers)


class CardDeclined(Exception):
    pass


def raised(error: Exception) -> Failed:
    def charge() -> None:
        secret_in_a_local_variable = "4111111111111111"  # noqa: F841
        raise error

    try:
        charge()
    except Exception as caught:
        return Failed(caught, "handler_failed", attempts=3)
    raise AssertionError


def diagnosed(came: Came, failed: Failed | None = None) -> dict[str, Any]:
    failed = failed or raised(CardDeclined("no funds"))
    headers = error_headers(cast("Delivery", came), failed, "billing", AT)
    assert encoded_size(headers) <= MAX_BYTES
    return headers


def test_the_diagnosis_says_what_where_and_how_often() -> None:
    """Spring's names and ours tell exception, origin, reason and attempts, and no local variable is shown."""
    headers = diagnosed(Came({"tenant": "acme"}, expiration="60000"))
    trace = headers.pop(names.EXCEPTION_STACKTRACE)
    assert headers == {
        "tenant": "acme",
        "x-exception-message": "no funds",
        "x-original-exchange": "shop",
        "x-original-routingKey": "order.placed",
        "relmsg-error-reason": "handler_failed",
        "relmsg-error-type": f"{__name__}.CardDeclined",
        "relmsg-error-attempts": 3,
        "relmsg-failed-at": "2026-11-21T10:00:00.000+00:00",
        "relmsg-original-queue": "billing.orders",
        "relmsg-consumer": "billing",
        "relmsg-original-expiration": "60000",
    }
    assert trace.rstrip().endswith("CardDeclined: no funds")
    assert "in charge" in trace
    assert "4111111111111111" not in trace


def test_an_earlier_diagnosis_is_replaced() -> None:
    """A message that fails for the second time carries one diagnosis, and no x-death."""
    first = diagnosed(Came({"tenant": "acme"}))
    again = diagnosed(Came({**first, "x-death": [{"count": 5}], "x-first-death-queue": "q"}))
    assert again.keys() == first.keys()


def test_a_long_trace_keeps_its_end_within_4_kib() -> None:
    """What happened last stands at the end of a trace, so the beginning is cut."""
    headers = diagnosed(Came(), raised(CardDeclined("é" * 9000 + "the end")))
    trace = headers[names.EXCEPTION_STACKTRACE]
    assert len(trace.encode()) <= 4096
    assert trace.rstrip().endswith("the end")
    assert len(headers[names.EXCEPTION_MESSAGE].encode()) <= 1024


def test_passwords_in_urls_are_hidden() -> None:
    """An exception that quotes a URL does not carry its password into the error queue."""
    headers = diagnosed(Came(), raised(CardDeclined("cannot reach amqp://user:hunter2@host/")))
    assert "hunter2" not in str(headers)


def test_a_huge_header_is_left_out_and_named() -> None:
    """A 130 KB header that could be received and could not be sent again costs only itself (C16)."""
    headers = diagnosed(Came({"huge": "x" * 131_014, "tenant": "acme"}))
    assert "huge" not in headers
    assert headers["tenant"] == "acme"
    assert headers[names.SANITISED] == "huge (dropped)"
    assert "CardDeclined" in headers[names.EXCEPTION_STACKTRACE]


def test_the_trace_gives_way_before_incoming_headers_do() -> None:
    """Headers that fit are kept, and the trace takes what is left."""
    headers = diagnosed(Came({"large": "x" * 13_900}), raised(CardDeclined("y" * 3000)))
    assert len(headers["large"]) == 13_900
    assert names.SANITISED not in headers
    assert len(headers[names.EXCEPTION_STACKTRACE]) < 2000


def test_what_cannot_be_sent_again_is_made_sendable() -> None:
    """Non-UTF-8 strings become base64, doubles of 64 bits and wide decimals become text, and all are named (C17)."""
    headers = diagnosed(
        Came(
            {
                "latin": b"caf\xe9",
                "big": 1e300,
                "pi": 3.141592653589793,
                "half": 0.5,
                "nested": {"list": [b"\xff", 1]},
                "wide": Decimal("99999999999.5"),
                "money": Decimal("9.95"),
                "raw": bytearray(b"\x00"),
                "none": None,
            }
        )
    )
    assert headers["latin"] == "base64:Y2Fm6Q=="
    assert headers["big"] == "1e+300"
    assert headers["pi"] == "3.141592653589793"
    assert headers["half"] == 0.5
    assert headers["nested"] == {"list": ["base64:/w==", 1]}
    assert headers["wide"] == "99999999999.5"
    assert headers["money"] == Decimal("9.95")
    assert headers["raw"] == bytearray(b"\x00")
    assert set(headers[names.SANITISED].split(", ")) == {"latin", "big", "pi", "nested", "wide"}


@pytest.mark.parametrize("name", ["CC", "BCC", "n" * 200])
def test_what_would_route_or_be_cut_is_left_out(name: str) -> None:
    """CC would send the error copy to other queues too; a name over 128 bytes would be cut without a word."""
    headers = diagnosed(Came({name: ["other"]}))
    assert name not in headers
    assert headers[names.SANITISED].endswith("(dropped)")


values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats()
    | some.text()
    | some.binary()
    | some.decimals(allow_nan=False),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=200), inner, max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(headers=some.dictionaries(some.text(min_size=1, max_size=200), values), text=some.text())
def test_whatever_comes_in_goes_out_again_under_16_kib(headers: dict[str, Any], text: str) -> None:
    """For any headers and any exception text, the error copy can be encoded, is small enough, and decodes to itself."""
    made = diagnosed(Came(headers), raised(CardDeclined(text)))
    table = made | {name: value for name, value in made.items() if not isinstance(value, float)}
    _, back = decode.field_table(_encoded(table))
    assert back.keys() == table.keys()


def _encoded(table: dict[str, Any]) -> bytes:
    from pamqp import encode

    raw = encode.field_table(table)
    assert struct.unpack(">I", raw[:4])[0] == len(raw) - 4
    return raw
