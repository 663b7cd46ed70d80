"""What a delivery from the coordinators' queue wants, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from relmsg.broker.delivery import Delivery
from relmsg.errors import MalformedHalf
from relmsg.half import protocol
from relmsg.half.half import Half, number, read_half, uuid_of
from relmsg.half.protocol import Answer, Verb, group_name
from relmsg.half.state import Resolution
from relmsg.message import canonical_id


@dataclass(frozen=True, slots=True)
class Decision:
    """A producer commits or rolls back. ``is_prepared``: it has seen the confirm of the prepare."""

    half_id: UUID
    group: str
    user_id: str | None
    resolution: Resolution
    is_prepared: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A member of the group has this check and asks its checker."""

    half_id: UUID
    group: str
    user_id: str | None
    check: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What the checker of a member said to this check."""

    half_id: UUID
    group: str
    user_id: str | None
    check: int
    answer: Answer


Word: TypeAlias = Half | Decision | Received | Answered

ANSWERS = {
    Resolution.COMMIT.value: Answer.COMMIT,
    Resolution.ROLLBACK.value: Answer.ROLLBACK,
    Resolution.UNKNOWN.value: Answer.UNKNOWN,
}


def read(delivery: Delivery, *, max_body_bytes: int) -> Word:
    """What this delivery wants.

    :raises MalformedHalf: it is none of the protocol, or a header is missing or out of range.
    :raises GroupRefused: there can be no group of that name.
    :raises InvalidMessage: a prepare of a message that could never be sent.
    """
    headers = delivery.message.headers
    if delivery.fault is not None:
        raise MalformedHalf(f"properties or headers cannot be read: {delivery.fault}") from delivery.fault
    verb = headers.get(protocol.VERB)
    if verb == Verb.PREPARE:
        return read_half(delivery.message, delivery.user_id, max_body_bytes=max_body_bytes)
    if verb not in (Verb.COMMIT, Verb.ROLLBACK, Verb.RECEIVED, Verb.ANSWER):
        raise MalformedHalf(f"header {protocol.VERB} is {verb!r}, and no verb that a coordinator knows")
    half_id = uuid_of(f"header {protocol.HALF_ID}", headers.get(protocol.HALF_ID))
    group, user_id = group_name(headers.get(protocol.GROUP)), delivery.user_id
    match verb:
        case Verb.COMMIT | Verb.ROLLBACK:
            resolution = Resolution.COMMIT if verb == Verb.COMMIT else Resolution.ROLLBACK
            return Decision(half_id, group, user_id, resolution, headers.get(protocol.IS_PREPARED) is True)
        case Verb.RECEIVED:
            return Received(half_id, group, user_id, _check(headers))
        case _:
            return Answered(half_id, group, user_id, _check(headers), _answer(headers))


def line_of(delivery: Delivery) -> str:
    """What tells one half message from another, whether or not the delivery can be read."""
    named = delivery.message.headers.get(protocol.HALF_ID)
    return canonical_id(named if isinstance(named, str) else str(delivery.message.id))


def _check(headers: Mapping[str, Any]) -> int:
    check = number(headers, protocol.CHECK)
    if check is None:
        raise MalformedHalf(f"header {protocol.CHECK} is missing")
    return check


def _answer(headers: Mapping[str, Any]) -> Answer:
    said = headers.get(protocol.RESOLUTION)
    answer = ANSWERS.get(said) if isinstance(said, str) else None
    if answer is None:
        raise MalformedHalf(f"header {protocol.RESOLUTION} is {said!r}, and neither COMMIT, ROLLBACK nor UNKNOWN")
    if answer is Answer.UNKNOWN and headers.get(protocol.REASON) == Answer.NO_CHECKER:
        return Answer.NO_CHECKER
    return answer
