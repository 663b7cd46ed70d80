"""The headers of an error copy: complete, sendable, and never over 16 KiB."""

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from relmsg.amqp.decode_table import decode_table
from relmsg.amqp.encode_table import encode_table
from relmsg.broker import error_headers as names
from relmsg.broker.diagnosis import error_headers
from relmsg.broker.headers import MAX_BYTES, encoded_size
from relmsg.broker.receiving import message_of
from relmsg.broker.subscriber import Delivery
from relmsg.inbox.outcome import Failed
from relmsg.message import Message
from tests.support.raw_amqp import properties

AT = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


@dataclass
class Came:
    """What a delivery shows of itself to the diagnosis."""

    headers: dict[str, Any] = field(default_factory=dict)
    queue: str = "billing.orders"
    expiration: str | None = None
    user_id: str | None = None
    altered: tuple[str, ...] = ()
    originals: dict[str, bytes] = field(default_factory=dict)

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


@pytest.mark.parametrize(
    "value",
    [
        b"caf\xe9",
        1e300,
        3.141592653589793,
        0.5,
        -9.25,
        {"list": [b"\xff", 1]},
        Decimal("9.95"),
        Decimal("-9.95"),
        bytearray(b"\x00"),
        None,
        datetime(2026, 1, 1, 10, 0, 0, 123_000, tzinfo=UTC),
    ],
)
def test_every_value_that_can_be_received_is_sent_again(value: object) -> None:
    """Doubles, bytes, decimals and times stand in the error copy with the values they came with."""
    headers = diagnosed(Came({"value": value, "n" * 255: 1}))
    assert names.SANITISED not in headers
    assert decode_table(encode_table(headers)[4:])["value"] == value
    assert "n" * 255 in headers


def test_a_value_that_cannot_be_sent_is_named() -> None:
    """A decimal of more digits than AMQP carries becomes text, and is named."""
    headers = diagnosed(Came({"wide": Decimal("99999999999.5")}))
    assert headers["wide"] == "99999999999.5"
    assert headers[names.SANITISED] == "wide"


def test_what_could_not_be_read_is_named() -> None:
    """A property that was dropped when the message was read is named in its error copy."""
    assert diagnosed(Came(altered=("timestamp (dropped)",)))[names.SANITISED] == "timestamp (dropped)"


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_what_would_route_is_left_out(name: str) -> None:
    """CC would send the error copy to other queues too."""
    headers = diagnosed(Came({name: ["other"]}))
    assert name not in headers
    assert headers[names.SANITISED] == f"{name} (dropped)"


values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats()
    | some.text()
    | some.binary()
    | some.decimals(allow_nan=False),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=200), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(headers=some.dictionaries(some.text(min_size=1, max_size=200), values, max_size=12), text=some.text())
def test_whatever_comes_in_goes_out_again_under_16_kib(headers: dict[str, Any], text: str) -> None:
    """For any headers and any exception text, the error copy can be encoded, is small enough, and decodes to itself."""
    made = diagnosed(Came(headers), raised(CardDeclined(text)))
    back = decode_table(encode_table(made)[4:])
    assert repr(back) == repr({name: back_of(value) for name, value in sorted(made.items())})


def back_of(value: Any) -> Any:
    """The value as a reader of AMQP has it: bytes are bytearrays, names are in order."""
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, dict):
        return {name: back_of(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        return [back_of(each) for each in value]
    return value


def test_the_bytes_of_what_was_repaired_are_kept() -> None:
    """Properties that are not UTF-8 are readable in the copy, and as they came in a header of it."""
    came = {"message_id": b"\xff" * 255, "type": b"ord\xe9r", "app_id": b"\xfe" * 86, "reply_to": b"fine"}
    header = struct.pack(">HHQ", 60, 0, 2) + properties(**came)
    message, expiration, remarks = message_of(header, "e", "r", b"{}")
    delivery = Delivery(message, "q", cast("Any", None), 1, expiration=expiration, remarks=remarks)
    headers = error_headers(delivery, raised(CardDeclined("no")), "billing", AT)
    assert headers["relmsg-original-bytes"] == {
        "message_id": came["message_id"],
        "type": came["type"],
        "app_id": came["app_id"],
    }
    copy = delivery.copy(exchange="x", routing_key="q.errors", message_id=str(message.id), headers=headers)
    again, _, _ = message_of(copy.header, "x", "q.errors", b"{}")
    assert again.headers["relmsg-original-bytes"]["type"] == b"ord\xe9r"
    assert error_headers(delivery, raised(CardDeclined("no")), "billing", AT, 2048).keys() >= {"relmsg-error-reason"}
