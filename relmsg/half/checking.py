"""Checkers: the user's functions that say what became of a local transaction."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

from relmsg.arguments import name_of, shown, text
from relmsg.broker.answer import really_cancelled
from relmsg.broker.error_text import trace_for
from relmsg.db.failures import brief
from relmsg.errors import CheckerRefused, UsageError
from relmsg.exceptions import text_of
from relmsg.half.metrics import CheckerMetrics
from relmsg.half.protocol import Answer
from relmsg.half.state import Resolution
from relmsg.message import Message
from relmsg.runtime.bounded_log import BoundedLog
from relmsg.runtime.isolated import isolated
from relmsg.security.encryption import is_encrypted

log = logging.getLogger(__name__)

ANY_TYPE: Final = "*"

ANSWERS: Final = {
    Resolution.COMMIT: Answer.COMMIT,
    Resolution.ROLLBACK: Answer.ROLLBACK,
    Resolution.UNKNOWN: Answer.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class HalfMessage:
    """What a checker is asked about: a message that was prepared, and of which nobody has said yet what became of its
    local transaction. Another process may have prepared it: decide from data that all members of the group share.
    """

    message: Message
    """The message as it will be sent; its body is bytes."""
    group: str
    check: int
    """The number of this check, from 1; numbers may be missing."""

    @property
    def id(self) -> UUID:
        """The id of the half message, which is that of the message."""
        assert isinstance(self.message.id, UUID)
        return self.message.id

    @property
    def type(self) -> str | None:
        """The message's type."""
        return self.message.type

    @property
    def body(self) -> bytes:
        """The message's body."""
        assert isinstance(self.message.body, bytes)
        return self.message.body


Checker: TypeAlias = Callable[[HalfMessage], Awaitable[Resolution]]


class Checkers:
    """The checkers of a producer, one for each message type; ``"*"`` takes the types that have none.

    :param timeout: seconds that one check may take. Longer is UNKNOWN.
    """

    def __init__(self, timeout: float, metrics: CheckerMetrics | None = None) -> None:
        self._timeout = timeout
        self._metrics = metrics or CheckerMetrics()
        self._lines = BoundedLog(log)
        self._checkers: dict[str, Checker] = {}

    def __bool__(self) -> bool:
        return bool(self._checkers)

    def add(self, type_: object, function: Checker) -> None:
        """Register a checker.

        :raises CheckerRefused: the type has one already; or it is not an ``async def`` that can be called with one
            half message.
        """
        name = name_of(function)
        try:
            type_ = text("give the message type it answers for", type_, f"({ANY_TYPE!r} for all others), which is")
        except UsageError as error:
            raise CheckerRefused(f"checker {name}: {text_of(error)}") from error
        if (taken := self._checkers.get(type_)) is not None:
            raise CheckerRefused(f"checker {name}: type {shown(type_)} has a checker already, {name_of(taken)}")
        if not inspect.iscoroutinefunction(function):
            raise CheckerRefused(f"checker {name}: write it as `async def`; a blocking function would stop all else")
        try:
            inspect.signature(function).bind(object())
        except Exception as error:
            raise CheckerRefused(
                f"checker {name} is called with one argument, the half message: {brief(error)}"
            ) from error
        self._checkers[type_] = function

    def find(self, type_: str | None) -> Checker | None:
        """The checker for a type; None if there is none."""
        return self._checkers.get(type_ or "") or self._checkers.get(ANY_TYPE)

    async def ask(self, half: HalfMessage) -> Answer:
        """What the checker says. UNKNOWN also where it fails, takes too long, or says anything but a Resolution: from
        none of these follows that the local transaction did not happen.
        """
        checker = self.find(half.type)
        if checker is None:
            self._lines.error("half message %s: no checker is registered for its type %r", half.id, half.type)
            return Answer.NO_CHECKER
        said = await self._said(checker, half)
        if type(said) is Resolution:  # what it returned may raise when it is asked for its class
            return ANSWERS[said]
        self._metrics.failed("checker_failed")
        self._lines.error(
            "half message %s: checker %s returned %s instead of a Resolution",
            half.id,
            name_of(checker),
            _class(said) if is_encrypted(half.message.headers) else _shown(said),
        )
        return Answer.UNKNOWN

    async def _said(self, checker: Checker, half: HalfMessage) -> object:
        async def work() -> None:
            said.append(await checker(half))

        said: list[object] = []
        try:
            async with asyncio.timeout(self._timeout):
                error = await isolated(work(), copy_context())
                if error is not None:
                    raise error
        except asyncio.CancelledError:
            if really_cancelled():
                raise
            self._lines.error("half message %s: checker %s was cancelled from inside", half.id, name_of(checker))
        except TimeoutError as error:
            self._lines.error(
                "half message %s: checker %s timed out, %g s are the limit\n%s",
                half.id,
                name_of(checker),
                self._timeout,
                trace_for(half.message.headers, error),
            )
        except BaseException as error:  # noqa: BLE001 - also what is no Exception says nothing of the transaction
            trace = trace_for(half.message.headers, error)
            self._lines.error("half message %s: checker %s failed\n%s", half.id, name_of(checker), trace)
        if said:
            return said[0]
        self._metrics.failed("checker_failed")
        return Resolution.UNKNOWN


def _shown(said: object) -> str:
    return repr(said)[:200] if type(said) in (str, bytes, int, float, bool, type(None)) else _class(said)


def _class(said: object) -> str:
    return f"a {type(said).__name__}"
