"""What RabbitMQ's refusal of a declaration says: which argument differs, what is there, what was asked for.

It names only the first argument that differs, in a text of at most 255 bytes, which a long queue name can cut short:
``inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current is 'classic'``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from relmsg.topology import Exchange, Queue

TYPE_ARGUMENTS = ("type", "x-queue-type")

# A value stands there as 'quorum', as none, or as: the value 'quorum' of type 'longstr'.
_DIFFERS = re.compile(r"inequivalent arg '([^']+)' for ")
_VALUES = re.compile(r": received (?P<asked>none|.+?) but current is (?P<real>none|.+)$", re.DOTALL)
_VALUE = re.compile(r"the value '(?P<typed>.*)' of type '\w+'|'(?P<plain>.*)'", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Difference:
    """One argument that differs. ``real``: what the broker has, None if it is not set. ``known`` is False where the
    broker's answer was cut short before it said so.
    """

    argument: str
    known: bool
    real: str | None = None


def difference(text: str) -> Difference | None:
    """What RabbitMQ's refusal of a declaration says; None if it says something else."""
    start = _DIFFERS.search(text)
    if start is None:
        return None
    values = _VALUES.search(text)
    if values is None or text.endswith("..."):
        return Difference(start[1], known=False)
    value = _VALUE.fullmatch(values["real"])
    return Difference(start[1], known=True, real=(value["typed"] or value["plain"] or "") if value else None)


def phrase(thing: Exchange | Queue, told: Difference) -> str:
    """One difference in words, without the name of what differs."""
    asked = _shown(asked_for(thing).get(told.argument))
    if not told.known:
        return f"{told.argument} is not {asked}, as asked for"
    real = _shown(in_place(thing, told))
    if told.argument == "x-queue-type" and told.real is None:
        real = "'classic'"  # before RabbitMQ 4 a classic queue that was declared without a type has none
    return f"{told.argument} is {real}, asked for {asked}"


def asked_for(thing: Exchange | Queue) -> dict[str, Any]:
    """All that a declaration asks for, by the names RabbitMQ uses in its refusals."""
    if isinstance(thing, Queue):
        return {"durable": True, "auto_delete": False, "exclusive": False} | thing.declaration
    return {
        "type": thing.type,
        "durable": thing.durable,
        "auto_delete": False,
        "internal": thing.internal,
    } | dict(thing.arguments)


def in_place(thing: Exchange | Queue, found: Difference) -> Any:
    """The value the broker has, as a value of ours: its text does not always tell 5 from "5"."""
    if found.real in ("true", "false") and not isinstance(asked_for(thing).get(found.argument), str):
        return found.real == "true"
    wanted = asked_for(thing).get(found.argument)
    number = found.real is not None and re.fullmatch(r"-?\d+", found.real)
    if number and not isinstance(wanted, str):
        return int(found.real or 0)
    return found.real


def _shown(value: str | int | None) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else repr(value)
