"""What became of one publish: Confirmed, Returned, Nacked or Unknown.

A receipt is a value first. The three that are not a confirmation can also be raised, for callers who want to go on
only after success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from relmsg.errors import RelmsgError
from relmsg.exceptions import text_of


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker has taken responsibility for the message, and routed it to at least one queue."""

    message_id: str


class NotConfirmed(RelmsgError):
    """The broker did not confirm the message.

    ``receipts``: where it was raised for one of many, those of all of them, in the order of the messages.
    """

    retryable = True
    receipts: Sequence[Receipt] = ()

    def __init__(self, message_id: str, reason: str) -> None:
        super().__init__(f"message {message_id}: {reason}")
        self.message_id = message_id
        self.reason = reason


class Returned(NotConfirmed):
    """The broker found no queue for the message and gave it back; nothing was stored.

    This can pass: a binding may be missing only for now, or the node of a queue may be down.
    """

    def __init__(
        self, message_id: str, exchange: str, routing_key: str, reply_code: int = 312, reply_text: str = "NO_ROUTE"
    ) -> None:
        super().__init__(
            message_id,
            f"returned as unroutable ({reply_code} {reply_text}): no queue is bound to exchange {exchange!r} "
            f"for routing key {routing_key!r}",
        )
        self.exchange = exchange
        self.routing_key = routing_key
        self.reply_code = reply_code
        self.reply_text = reply_text


class Nacked(NotConfirmed):
    """The broker refused responsibility: a queue is full, or is just changing its leader. AMQP gives no reason.

    Where the message was to go to several queues, some of them may have stored it.
    """

    def __init__(self, message_id: str) -> None:
        super().__init__(message_id, "refused by the broker (basic.nack): a target queue is full or unavailable")


class Unknown(NotConfirmed):
    """No answer came: the message may be in the broker or not.

    Publish it again under the same id. ``cause`` is what ended the wait. ``reply_code`` is the AMQP code with which the
    broker closed the channel or the connection, None where nothing was heard.
    """

    def __init__(self, message_id: str, cause: BaseException, reply_code: int | None = None) -> None:
        heard = "no answer from the broker" if reply_code is None else "the broker closed the channel"
        super().__init__(message_id, f"{heard}, the message may be stored or not: {text_of(cause)}")
        self.cause = cause
        self.reply_code = reply_code
        self.__cause__ = cause


Receipt: TypeAlias = Confirmed | Returned | Nacked | Unknown
