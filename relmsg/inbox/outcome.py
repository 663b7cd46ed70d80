"""What became of one delivery: Handled, Duplicate, Failed or Unsettled.

::

    Outcome     the transaction            the delivery
    Handled     committed                  acked
    Duplicate   nothing to do              acked
    Failed      rolled back                copied to the error exchange, confirmed, then acked
    Unsettled   rolled back, or unknown    left alone: the broker delivers it again
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, TypeAlias

from relmsg.errors import MissingMessageId, RelmsgError, Undecodable, Undecryptable, UnknownType, Untrusted
from relmsg.exceptions import causes, own, type_name

Reason: TypeAlias = Literal[
    "handler_failed",
    "handler_timeout",
    "handler_ended_transaction",
    "missing_id",
    "unknown_type",
    "undecodable",
    "untrusted",
    "killed_worker",
    "connection_lost",
    "internal_error",
]


@dataclass(frozen=True, slots=True)
class Handled:
    """The effect of the message is committed, together with the inbox row that says so."""

    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The message had taken effect before; nothing was done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The message cannot be handled, or not within its retries. Nothing of it is committed."""

    error: BaseException
    reason: Reason
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Unsettled:
    """It is not known, or not decided: the process is stopping, or a service is away. Not the message's fault.

    Where a commit was under way it may have happened; the next delivery will find the inbox row and be a Duplicate.
    """

    cause: BaseException


@dataclass(frozen=True, slots=True)
class Contended:
    """Another transaction was in the way. Nothing is committed, no attempt is spent, and it is tried again."""

    error: BaseException
    ours: bool = False
    """Whether a statement of ours met it: then the message has no part in it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection was lost while the handler ran, and the database answers all others."""

    error: BaseException
    is_proven: bool = False
    """Whether it is certain that the handler did it: then it is not tried again."""


Settled: TypeAlias = Handled | Duplicate | Failed
Outcome: TypeAlias = Settled | Unsettled
Attempted: TypeAlias = Outcome | Contended | Lost
"""What became of one attempt; after the last two the same message is tried again."""


class HandlerTimeout(RelmsgError):
    """The handler took longer than its timeout."""

    retryable = True


class HandlerCancelled(RelmsgError):
    """A CancelledError came out of the handler although nobody had cancelled it."""

    retryable = True


class HandlerRaised(RelmsgError):
    """A handler, or what decodes for it, raised an exception that cannot be read: one of its properties raises."""

    retryable = True


def readable(error: BaseException) -> BaseException:
    """The error, or one of ours in its place if nobody can ask what it is: its ``__class__``, or a cause's, raises."""
    try:
        for each in causes(error):
            isinstance(each, asyncio.Event)  # no exception is one: so Python asks the exception itself
    except BaseException:  # noqa: BLE001 - anybody's code
        return HandlerRaised(f"the handler raised {type_name(error)}, which cannot be read").with_traceback(
            own(error, "__traceback__")
        )
    return error


class HandlerEndedTransaction(RelmsgError):
    """The handler ended the transaction: inbox row and effect could not commit together any more.

    relmsg commits after the handler has returned. Use ``async with session.begin_nested()`` for a part that may be
    rolled back alone.
    """


class StatementSwallowed(RelmsgError):
    """A statement on the driver's own connection has failed, and the handler has let that pass: PostgreSQL commits
    nothing of such a transaction.

    Let the error through, or run the statement in a savepoint (``async with session.begin_nested()``).
    """


class TaskCancelled(RelmsgError):
    """The task of a message was cancelled, by neither its timeout nor the end of the consumer.

    Look for code that cancels the current task, or all tasks of the event loop.
    """

    retryable = True


class DeliveryGone(RelmsgError):
    """The channel of the delivery is closed: the broker has taken the message back and delivers it again."""


REASONS: dict[type[BaseException], Reason] = {
    MissingMessageId: "missing_id",
    UnknownType: "unknown_type",
    Undecodable: "undecodable",
    Undecryptable: "undecodable",
    Untrusted: "untrusted",
    HandlerTimeout: "handler_timeout",
    HandlerEndedTransaction: "handler_ended_transaction",
}
