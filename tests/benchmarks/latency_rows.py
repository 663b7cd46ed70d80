"""From COMMIT to the consumer's callback (section 3 of the goals).

Producer, relay and consumer share a process and an event loop, each with connections of its own, as the reference
measured; where the relay is a sidecar, the row says so.
"""

from __future__ import annotations

from functools import partial

from tests.benchmarks.latency_stage import path
from tests.benchmarks.model import Comparison, Contender, Goal, Row

DIRECT, TXOUTBOX, FASTSTREAM = "direct publish after commit", "txoutbox, listening", "faststream-outbox, listening"
WAKE, HINT, SIDECAR = "wake in process", "hint", "hint to a sidecar"
POLLING, IDLE = "sidecar, polling, busy", "sidecar, polling, from idle"

BUSY = partial(path, every=0.02)
OURS = partial(BUSY, program="latency_relmsg")


def _against(name: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{name}, p50 in ms, against a direct publish after commit", Goal(most=1.3), ours, DIRECT, "p50_ms"),
        Row(f"{name}, p50 in ms, against txoutbox", Goal(most=0.7), ours, TXOUTBOX, "p50_ms"),
        Row(f"{name}, p50 in ms, against faststream-outbox", Goal(most=0.5), ours, FASTSTREAM, "p50_ms"),
    )


COMPARISONS = (
    Comparison(
        "latency",
        (
            Contender(WAKE, partial(OURS, how="wake"), 400, 25),
            Contender(DIRECT, partial(BUSY, program="latency_direct"), 400, 25, peer=True),
            Contender(HINT, partial(OURS, how="hint"), 400, 25),
            Contender(TXOUTBOX, partial(BUSY, program="latency_txoutbox"), 400, 25, peer=True),
            Contender(SIDECAR, partial(OURS, how="sidecar", sidecar=True), 400, 25),
            Contender(FASTSTREAM, partial(BUSY, program="latency_faststream"), 400, 25, peer=True),
            Contender(POLLING, partial(OURS, how="polling", sidecar=True), 400, 25),
        ),
        (
            *_against("wake in process", WAKE),
            *_against("hint", HINT),
            *_against("hint to a sidecar", SIDECAR),
            Row(
                "sidecar without a hint, 50 messages a second, p50", Goal(most=15, unit="ms"), POLLING, figure="p50_ms"
            ),
        ),
    ),
    Comparison(
        "latency from idle",
        (
            Contender(
                IDLE,
                partial(path, program="latency_relmsg", how="polling", sidecar=True, every=2.03),  # meets every phase
                6,
                2,
            ),
        ),
        (Row("sidecar without a hint, from idle, p50", Goal(most=150, unit="ms"), IDLE, figure="p50_ms"),),
    ),
)
