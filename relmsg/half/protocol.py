"""How producers and coordinators talk, over the broker alone: queues, verbs, and the headers that carry them.

::

    producer ── prepare ──────────────▶ relmsg.half            the message itself, as it will be sent
             ── commit, rollback ─────▶                        ◀── state, to the producer's reply queue
    member   ◀─ check ─────────────── relmsg.half.check.GROUP  the message again, and the number of the check
             ── received, answer ─────▶ relmsg.half

The message id of prepare and check is that of the message; all others have ids of their own and name the half message
in a header. Whatever is lost on the way is made up for by the next check.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from relmsg.arguments import shown
from relmsg.errors import GroupRefused
from relmsg.topology import Queue

COORDINATOR: Final = "relmsg.half"
"""The queue that all coordinators share; they declare it."""

VERB: Final = "relmsg-half"
HALF_ID: Final = "relmsg-half-id"
GROUP: Final = "relmsg-half-group"
EXCHANGE: Final = "relmsg-half-exchange"
ROUTING_KEY: Final = "relmsg-half-routing-key"
EXPIRES_IN: Final = "relmsg-half-expires-in"
"""Milliseconds, counted from the commit. Not a property: the broker would let the prepare itself expire."""
CHECK_AFTER: Final = "relmsg-half-check-after"
CHECK_EVERY: Final = "relmsg-half-check-every"
"""Both in milliseconds."""
MAX_CHECKS: Final = "relmsg-half-max-checks"
CHECK: Final = "relmsg-half-check"
"""The number of a check."""
RESOLUTION: Final = "relmsg-half-resolution"
REASON: Final = "relmsg-half-reason"
STATE: Final = "relmsg-half-state"
IS_PREPARED: Final = "relmsg-half-is-prepared"
"""True where the sender has seen the confirm of the prepare: then a decision that overtakes it is kept for it."""

MAX_GROUP_BYTES: Final = 128
_NAME: Final = re.compile(r"[a-zA-Z0-9\-_.:@#,/+ ]+")  # a group is a part of the name of a queue


class Verb(StrEnum):
    """What a message of the protocol wants."""

    PREPARE = "prepare"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    RECEIVED = "received"
    """A member has the check and asks its checker now: from here on it counts."""
    ANSWER = "answer"
    CHECK = "check"
    STATE = "state"


class Answer(StrEnum):
    """What a check came to, as it is counted."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    UNKNOWN = "unknown"
    NO_CHECKER = "no_checker"


class Refusal(StrEnum):
    """Why a decision has changed nothing, as the reason of a state says it."""

    UNKNOWN_ID = "unknown id"
    ANOTHER_GROUP = "another group"
    ANOTHER_USER = "another user"


def group_name(group: object) -> str:
    """The group, if there can be one of that name.

    :raises GroupRefused: it is not a string, empty, over 128 bytes, or has characters that no queue may have.
    """
    if not isinstance(group, str) or not group.strip():
        raise GroupRefused(f"group {shown(group)}: give the name of your service, which all its instances share")
    if not _NAME.fullmatch(group):
        raise GroupRefused(f"group {group[:32]!r}: names are made of ASCII letters, digits, spaces and -_.:@#,/+")
    if (size := len(group.encode())) > MAX_GROUP_BYTES:
        raise GroupRefused(f"group {group[:32]!r}… takes {size} bytes, at most {MAX_GROUP_BYTES} may")
    return group


def coordinator_queue() -> Queue:
    """The queue of the coordinators as they declare it.

    Each time a coordinator loses its channel, as after half an hour without a database, what it held counts as
    returned. Only what was returned a thousand times goes to the error queue: nothing else can be the reason.
    """
    return Queue(COORDINATOR, delivery_limit=1000)


def check_queue(group: str) -> str:
    """The queue of a group, from which any live member takes checks; members and coordinators declare it."""
    return f"{COORDINATOR}.check.{group}"


def checks_of(group: str) -> Queue:
    """That queue. A check that is lost costs nothing but time, so it dead-letters nowhere."""
    return Queue(check_queue(group), dead_letter_exchange=None)
