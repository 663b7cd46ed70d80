"""What an outbox that knows its topology refuses to publish."""

from __future__ import annotations

from typing import Any

import pytest

from relmsg import Binding, Exchange, Message, Outbox, Queue, Topology
from relmsg.errors import InvalidMessage, UnknownRoute, UsageError

TOPOLOGY = Topology(
    exchanges=[
        Exchange("shop"),
        Exchange("direct", type="direct"),
        Exchange("all", type="fanout"),
        Exchange("by.header", type="headers"),
        Exchange("hashed", type="x-consistent-hash"),
        Exchange("inner", internal=True),
        Exchange("others.bind"),
        Exchange("else", arguments={"alternate-exchange": "all"}),
    ],
    queues=[
        Queue("orders", bindings=[Binding("shop", routing_key="order.*"), Binding("shop", routing_key="#.paid.#")]),
        Queue("one", bindings=[Binding("direct", routing_key="k"), Binding("all"), Binding("hashed", routing_key="1")]),
        Queue("de", bindings=Binding("by.header", arguments={"x-match": "any", "country": "de", "vip": True})),
        Queue("in", bindings=[Binding("inner", routing_key="k"), Binding("else", routing_key="k")]),
        Queue("foreign", bindings=Binding("of.others", routing_key="k")),
    ],
)
OUTBOX = Outbox("orders", topology=TOPOLOGY)


def message(exchange: str, key: str = "", **given: Any) -> Message:
    return Message(exchange=exchange, routing_key=key, **given)


@pytest.mark.parametrize(
    "known",
    [
        message("shop", "order.placed"),
        message("shop", "order."),
        message("shop", "paid"),
        message("shop", "a.b.paid.c"),
        message("direct", "k"),
        message("all", "anything"),
        message("by.header", headers={"country": "de"}),
        message("by.header", headers={"vip": True, "country": "fr"}),
        message("hashed", "any"),
        message("others.bind", "any"),
        message("else", "any"),
        message("of.others", "any"),
        message("", "orders"),
        message("", "orders.errors"),
        message("relmsg.errors", "orders.errors"),
    ],
)
def test_what_has_a_route_is_published(known: Message) -> None:
    """A message that a queue of the topology gets, or that only others may have bound, is taken."""
    OUTBOX.insert(known)


@pytest.mark.parametrize(
    ("unknown", "told"),
    [
        (message("shpo", "order.placed"), "no exchange 'shpo', did you mean 'shop'"),
        (message("shop", "ordr.placed"), "routing key 'ordr.placed'"),
        (message("shop", "order.placed.late"), "routing key"),
        (message("shop", "order"), "routing key"),
        (message("shop", ""), "routing key"),
        (message("direct", "K"), "routing key"),
        (message("direct", "*"), "routing key"),
        (message("by.header", headers={"country": "fr"}), "headers"),
        (message("inner", "k"), "internal"),
        (message("", "order"), "no queue 'order'.*did you mean 'orders'"),
        (message("", ""), "no queue"),
    ],
)
async def test_what_has_none_is_refused_by_name(unknown: Message, told: str) -> None:
    """A message that nobody would get is refused before anything is written, in every way of publishing."""
    with pytest.raises(UnknownRoute, match=told) as refused:
        OUTBOX.insert(unknown)
    assert isinstance(refused.value, InvalidMessage)
    assert "\n" not in str(refused.value)
    tx: Any = None  # never asked for: the message is refused first
    with pytest.raises(UnknownRoute):
        await OUTBOX.publish(tx, unknown)
    with pytest.raises(UnknownRoute):
        await OUTBOX.publish_many(tx, [message("shop", "order.placed"), unknown])


def test_without_a_topology_nothing_is_refused() -> None:
    """An outbox that was told of no topology leaves routes to the broker."""
    Outbox("orders").insert(message("anything", "at all"))


@pytest.mark.parametrize("wrong", ["shop", Exchange("shop"), [Queue("q")], Topology])
def test_a_topology_is_a_topology(wrong: Any) -> None:
    """What is no Topology is refused by name."""
    with pytest.raises(UsageError, match="topology"):
        Outbox("orders", topology=wrong)
