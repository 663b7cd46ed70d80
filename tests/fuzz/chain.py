"""The whole way of a message inside one process, without a broker: nothing on it may raise."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout, suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from relmsg.broker.connection import Connection
from relmsg.broker.cut_copy import smaller_copies
from relmsg.broker.delivery import Delivery
from relmsg.broker.diagnosis import error_headers
from relmsg.broker.envelope import MAX_SHORT_BYTES
from relmsg.broker.error_entry import ErrorFilter, entry_of
from relmsg.broker.error_exchange import ErrorExchange
from relmsg.broker.error_queue import _publication
from relmsg.broker.error_reader import Unacked
from relmsg.broker.receiving import message_of
from relmsg.cli import error_rows, output
from relmsg.errors import InvalidMessage, RelmsgError
from relmsg.half.reading import line_of, read
from relmsg.inbox.arrival import arrived
from relmsg.inbox.inbox import Inbox
from relmsg.inbox.outcome import Failed
from relmsg.message import Message
from relmsg.security.signing import HmacKey
from relmsg.security.trust import Sender, Trust
from tests.fuzz.mutator import Sample

QUEUE = "billing.orders"
NOW = datetime(2026, 1, 31, tzinfo=UTC)
FILTERS = (ErrorFilter(exception="KeyError", type="t"), ErrorFilter(since=NOW), ErrorFilter(until=NOW))
TRUST = Trust({"orders": Sender(keys=HmacKey("k1", b"x" * 32))}, others="accept")
ORIGIN = cast("Any", SimpleNamespace(generation=1, is_open=True))

inbox = Inbox("billing", async_sessionmaker(class_=AsyncSession))


@inbox.handler("order.placed", queue=QUEUE)
async def placed(event: dict[str, Any], session: AsyncSession) -> None:
    """Is never called."""


@inbox.handler("*", queue=QUEUE)
async def other(message: Message, session: AsyncSession) -> None:
    """Is never called."""


def go(sample: Sample) -> None:
    """Take a sample through consumer, error exchange, coordinator, error queue, requeue and lists."""
    message, expiration, remarks = message_of(sample.header, "e", "r", sample.body)
    delivery = Delivery(message, QUEUE, ORIGIN, 1, expiration=expiration, remarks=remarks)
    for trust in (None, TRUST):
        arrival = arrived(delivery, "billing", inbox._registry, "hash", trust)
        assert (arrival.task is None) != (arrival.refused is None)
        assert arrival.refused is None or arrival.refused.reason != "internal_error", arrival.refused
    in_error_queue(delivery, arrival.refused or Failed(KeyError("id"), "handler_failed", attempts=1))
    line_of(delivery)
    with suppress(RelmsgError):
        read(delivery, max_body_bytes=1000)
    shown(Unacked(1, message, expiration, remarks))


def in_error_queue(delivery: Delivery, failed: Failed) -> None:
    """A copy can be made, within its limits, and is read again without anything that had to be left out."""
    exchange = ErrorExchange(cast("Connection", SimpleNamespace(frame_max=0)), "relmsg.errors")
    copies = [exchange.copy(delivery, failed, "billing", str(delivery.message.id))]

    def headers(most: int) -> dict[str, Any]:
        return error_headers(delivery, failed, "billing", NOW, most)

    makers = smaller_copies(delivery, "relmsg.errors", "q", copies[0].message_id, headers, {})
    for copy in (*copies, *(make() for make in makers)):
        assert 0 < len(copy.message_id.encode()) <= MAX_SHORT_BYTES
        again, expiration, remarks = message_of(copy.header, copy.exchange, copy.routing_key, copy.body)
        assert remarks is None or remarks.fault is None
        assert expiration is None
        assert again.id == copy.message_id or "x-message-id" in again.headers
    shown(Unacked(1, *message_of(copies[0].header, "relmsg.errors", "q", copies[0].body)))


def shown(unacked: Unacked) -> None:
    """It is listed, filtered and shown, in JSON and for people, in printable characters, and sent again or kept."""
    entry = entry_of(unacked, QUEUE)
    for wanted in FILTERS:
        wanted.matches(entry)
    row = error_rows.row_of(entry)
    for each in (error_rows.listed(entry), row):
        text = output.as_json(each)
        assert text.isprintable()
        json.loads(text)
    error_rows.brief(row)
    with redirect_stdout(io.StringIO()) as printed:
        output.emit([error_rows.listed(entry)], False, error_rows.COLUMNS)
        error_rows.write_whole(row)
    assert all(each.isprintable() or each in "\t\n" for each in printed.getvalue())
    with suppress(InvalidMessage):
        _publication(unacked, QUEUE)
