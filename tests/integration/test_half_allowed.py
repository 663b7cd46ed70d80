"""A coordinator sends no half message that its group may not send."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg import HalfProducer, HalfState, Message
from relmsg.broker import error_headers as names
from relmsg.errors import HalfOfAnotherGroup, HalfRolledBack
from tests.support.broker import Broker
from tests.support.halves import becomes, coordinating, half_row, outbox_rows

RULES = "payments: receipts as payments; closed: nothing"


def receipt(**given: Any) -> Message:
    return Message(**{"type": "paid", "exchange": "receipts", "source": "payments", "body": b"1"} | given)


async def test_what_a_group_may_send_is_sent(engine: AsyncEngine, database_url: str, amqp_url: str) -> None:
    """Its own exchange and source, and anything where the group has no rule."""
    async with coordinating(database_url, amqp_url, half_allowed=RULES):
        for group, message in (("payments", receipt()), ("others", receipt(exchange="shop", source="anybody"))):
            async with HalfProducer(amqp_url, group=group) as half, half.begin(message) as tx:
                pass
            assert tx.state is HalfState.COMMITTED
    assert [(row.exchange, row.source) for row in await outbox_rows(engine)] == [
        ("receipts", "payments"),
        ("shop", "anybody"),
    ]


@pytest.mark.parametrize(
    ("group", "given"),
    [
        ("payments", {"exchange": "shop"}),
        ("payments", {"exchange": "", "routing_key": "billing.orders"}),
        ("payments", {"source": "orders"}),
        ("closed", {}),
    ],
)
async def test_what_a_group_may_not_send_is_refused(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker, group: str, given: dict[str, Any]
) -> None:
    """It is in the error queue with its reason, its producer is told that it is rolled back, and nothing is sent."""
    async with coordinating(database_url, amqp_url, half_allowed=RULES):
        async with HalfProducer(amqp_url, group=group) as half:
            with pytest.raises(HalfRolledBack):
                async with half.begin(receipt(**given)) as tx:
                    pass
        row = await half_row(engine, tx.half_id)
        assert row is not None
        assert (row.state, row.decided_by) == ("ROLLED_BACK", "coordinator: not allowed")
        assert row.prepared_at is None
        (failed,) = await broker.drain("relmsg.half.errors")
        assert failed.headers[names.REASON] == "half_not_allowed"
    assert await outbox_rows(engine) == []


async def test_a_refused_prepare_does_not_touch_the_half_message_of_that_id(
    engine: AsyncEngine, database_url: str, amqp_url: str, broker: Broker
) -> None:
    """Whoever prepares something forbidden under another's id does not roll that back."""
    message = receipt()
    async with (
        coordinating(database_url, amqp_url, half_allowed=RULES),
        HalfProducer(amqp_url, group="payments") as half,
        HalfProducer(amqp_url, group="closed") as other,
        half.begin(message) as tx,
    ):
        await becomes(engine, tx.half_id, HalfState.PREPARED)
        with pytest.raises(HalfOfAnotherGroup):
            async with other.begin(message):
                pass
    assert tx.state is HalfState.COMMITTED
    assert len(await outbox_rows(engine)) == 1
    assert len(await broker.drain("relmsg.half.errors")) == 1
