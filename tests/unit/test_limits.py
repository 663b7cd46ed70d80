"""What is larger than a consumer takes is refused before its handler is called."""

from __future__ import annotations

from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from relmsg import Inbox, Message
from relmsg.broker.delivery import Delivery
from relmsg.errors import Undecodable
from relmsg.inbox.arrival import arrived
from relmsg.inbox.handle.limits import Limits

inbox = Inbox("billing", async_sessionmaker(class_=AsyncSession))


@inbox.handler("decoded", queue="q")
async def decoded(event: dict[str, Any], session: AsyncSession) -> None:
    """Is never called."""


@inbox.handler("raw", queue="q")
async def raw(message: Message, session: AsyncSession) -> None:
    """Is never called."""


@pytest.mark.parametrize(
    ("limits", "type_", "refusal"),
    [
        (Limits(), "decoded", None),
        (Limits(json_bytes=200), "decoded", None),
        (Limits(json_bytes=199), "decoded", "200 bytes, at most 199"),
        (Limits(json_bytes=199), "raw", None),
        (Limits(header_bytes=1000), "raw", None),
        (Limits(header_bytes=100), "raw", "headers take"),
    ],
)
def test_each_limit_refuses_what_is_larger(limits: Limits, type_: str, refusal: str | None) -> None:
    """A limit holds for what it is about, and up to its last byte."""
    message = Message(id="1", type=type_, body=b'{"a": ' + b"1" * 193 + b"}", headers={"a": "x" * 200})
    arrival = arrived(Delivery(message, "q", cast("Any", None), 1), "billing", inbox._registry, "reject", limits=limits)
    if refusal is None:
        assert arrival.task is not None
    else:
        assert arrival.refused is not None
        assert arrival.refused.reason == "undecodable"
        assert isinstance(arrival.refused.error, Undecodable)
        assert refusal in str(arrival.refused.error)
