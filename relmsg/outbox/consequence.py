"""What a receipt means for its row. The one place that decides it."""

from __future__ import annotations

from enum import Enum, auto

from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown


class Consequence(Enum):
    """What happens to a row after its publish."""

    DELETE = auto()
    """The broker has the message: the row goes."""
    HOLD_DESTINATION = auto()
    """Exchange and routing key lead nowhere for now: they wait, everything else goes on."""
    HOLD_EXCHANGE = auto()
    """The exchange is missing or forbidden: all that is meant for it waits, everything else goes on."""
    RESEND = auto()
    """It may have arrived or not: sent again under the same id."""
    ISOLATE = auto()
    """One row of the batch ended the channel and took the verdicts of the others along: each is tried alone."""
    PARK = auto()
    """The broker refuses this very message whatever happens: set aside, with the reason, until a person decides."""


# AMQP 0-9-1 reply codes, as RabbitMQ uses them.
ABOUT_THE_EXCHANGE = {403, 404, 405}  # access refused, not found, locked
ABOUT_THE_MESSAGE = {311, 406, 501, 502, 503, 505, 540}  # too large, precondition, malformed, not implemented


def consequence(receipt: Receipt, *, alone: bool) -> Consequence:
    """What happens to a row with this receipt; ``alone`` says that nothing else was on its channel.

    Only a row that was alone can be found guilty of a closed channel.
    """
    match receipt:
        case Confirmed():
            return Consequence.DELETE
        case Returned() | Nacked():
            return Consequence.HOLD_DESTINATION
        case Unknown(reply_code=code) if code in ABOUT_THE_EXCHANGE:
            return Consequence.HOLD_EXCHANGE if alone else Consequence.ISOLATE
        case Unknown(reply_code=code) if code in ABOUT_THE_MESSAGE:
            return Consequence.PARK if alone else Consequence.ISOLATE
        case Unknown():
            return Consequence.RESEND
