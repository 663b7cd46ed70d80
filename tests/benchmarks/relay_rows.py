"""The relay against its peers, against the loop teams write, and against C."""

from __future__ import annotations

from tests.benchmarks.conditions import after_dead_rows, after_vacuum, keyed, one_relay, two_relays
from tests.benchmarks.model import Comparison, Contender, Goal, Row
from tests.benchmarks.outbox import relay
from tests.benchmarks.peers import faststream_outbox, naive, txoutbox
from tests.benchmarks.publishers import aio_pika_publisher, c_publisher, relmsg_publisher

RELAY, C = "relmsg relay", "C publisher"
TXOUTBOX, FASTSTREAM, NAIVE = "txoutbox", "faststream-outbox", "the loop teams write"
ONE, TWO = "one relay", "two relays"
KEYED, UNKEYED = "keyed", "unkeyed"
DEAD, VACUUMED = "200,000 dead rows", "none"
PUBLISH_MANY, AIO_PIKA = "Publisher.publish_many", "aio-pika, gather 1000"

COMPARISONS = (
    Comparison(
        "relay",
        (
            Contender(RELAY, relay, 60_000, 3_000),
            Contender(TXOUTBOX, txoutbox, 20_000, 3_000, peer=True),
            Contender(FASTSTREAM, faststream_outbox, 10_000, 2_000, peer=True),
            Contender(NAIVE, naive, 4_000, 500, peer=True),
            Contender(C, c_publisher, 60_000, 3_000, peer=True),
        ),
        (
            Row("one relay, our defaults, against txoutbox 0.2.2 tuned", Goal(5, classic=2.8), RELAY, TXOUTBOX),
            Row("against faststream-outbox 0.19 tuned", Goal(10, classic=7), RELAY, FASTSTREAM),
            Row("against the loop teams write", Goal(20, classic=12), RELAY, NAIVE),
            Row("against a C publisher", Goal(0.85, classic=0.55), RELAY, C),
            Row("CPU of the relay's process per message", Goal(most=20, unit="us"), RELAY, figure="cpu"),
        ),
    ),
    Comparison(
        "publisher",
        (
            Contender(PUBLISH_MANY, relmsg_publisher, 60_000, 3_000),
            Contender(C, c_publisher, 60_000, 3_000, peer=True),
            Contender(AIO_PIKA, aio_pika_publisher, 20_000, 3_000, peer=True),
        ),
        (
            Row("`Publisher.publish_many` against a C publisher", Goal(0.85), PUBLISH_MANY, C),
            Row("`Publisher.publish_many` against aio-pika, gather 1000", Goal(3, classic=2), PUBLISH_MANY, AIO_PIKA),
        ),
    ),
    Comparison(
        "two relays",
        (Contender(ONE, one_relay, 60_000, 3_000), Contender(TWO, two_relays, 60_000, 3_000)),
        (Row("two relays against one, no message twice", Goal(1.1), TWO, ONE),),
    ),
    Comparison(
        "keys",
        (Contender(UNKEYED, relay, 60_000, 3_000), Contender(KEYED, keyed, 60_000, 3_000)),
        (Row("keyed (6,000 keys) against unkeyed", Goal(0.8), KEYED, UNKEYED),),
    ),
    Comparison(
        "dead rows",
        (Contender(VACUUMED, after_vacuum, 60_000, 3_000), Contender(DEAD, after_dead_rows, 60_000, 3_000)),
        (
            Row("200,000 dead rows under an old snapshot against none", Goal(0.9), DEAD, VACUUMED),
            Row("empty poll with these dead rows", Goal(most=1, unit="ms"), DEAD, figure="poll_ms"),
        ),
    ),
)
