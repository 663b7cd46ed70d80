"""The prepare: the message itself, as it will be sent, addressed to the coordinators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta

from relmsg.broker.envelope import MAX_BODY_BYTES, Envelope, outbox_id, seal
from relmsg.errors import UsageError
from relmsg.half.protocol import (
    CHECK_AFTER,
    CHECK_EVERY,
    COORDINATOR,
    EXCHANGE,
    EXPIRES_IN,
    GROUP,
    MAX_CHECKS,
    ROUTING_KEY,
    VERB,
    Verb,
)
from relmsg.message import Message

MOST_SECONDS = 365 * 86_400.0
MOST_CHECKS = 1_000_000


def terms(
    check_after: timedelta | float | None, check_every: timedelta | float | None, max_checks: int | None
) -> dict[str, int]:
    """The headers that say when and how often to check; what is None is left to the coordinators.

    :raises UsageError: a time is not positive or over a year, or ``max_checks`` is not 1 to 1,000,000.
    """
    found: dict[str, int] = {}
    for header, name, value in (
        (CHECK_AFTER, "check_after", check_after),
        (CHECK_EVERY, "check_every", check_every),
    ):
        if value is not None:
            found[header] = _milliseconds(name, value)
    if max_checks is not None:
        if isinstance(max_checks, bool) or not isinstance(max_checks, int) or not 1 <= max_checks <= MOST_CHECKS:
            raise UsageError(f"begin(max_checks=…) is 1 to {MOST_CHECKS}, not {max_checks!r}")
        found[MAX_CHECKS] = max_checks
    return found


def prepare(
    message: Message,
    terms: Mapping[str, int],
    *,
    group: str,
    source: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Envelope:
    """The envelope of a prepare. The message is held against every rule that ``Outbox.publish`` holds it against.

    :raises InvalidMessage: the message can never be sent, or its id is not a UUID.
    """
    half_id = outbox_id(message)
    sealed = seal(message, source=source, max_body_bytes=max_body_bytes)
    said: dict[str, str | int] = {
        VERB: Verb.PREPARE.value,
        GROUP: group,
        EXCHANGE: sealed.exchange,
        ROUTING_KEY: sealed.routing_key,
        **terms,
    }
    if sealed.expiration_ms is not None:
        said[EXPIRES_IN] = sealed.expiration_ms
    return sealed._replace(
        message_id=str(half_id),
        exchange="",
        routing_key=COORDINATOR,
        headers={**sealed.headers, **said},
        expiration_ms=None,
    )


def _milliseconds(name: str, value: timedelta | float) -> int:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise UsageError(f"begin({name}=…) is a timedelta or a number of seconds, not {value!r}")
    if not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"begin({name}=…) is more than 0 s and at most a year, not {seconds:g} s")
    return max(1, round(seconds * 1000))
