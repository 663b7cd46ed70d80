"""One half message in the hands of its producer: prepared, then committed, rolled back, or left to the check-back."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self, TypeAlias
from uuid import UUID

from relmsg.broker.envelope import outbox_id
from relmsg.broker.receipt import Confirmed, Returned
from relmsg.broker.wire import Publication
from relmsg.errors import HalfRolledBack, UsageError
from relmsg.failpoint import reach
from relmsg.half.decisions import Decisions
from relmsg.half.sender import Sender
from relmsg.half.state import HalfState, Resolution
from relmsg.message import Message
from relmsg.telemetry import span

log = logging.getLogger(__name__)

LocalWork: TypeAlias = "Callable[[HalfTransaction], Awaitable[object] | object]"


class HalfTransaction:
    """What ``HalfProducer.begin`` returns: enter it, do the local work inside, and leave.

    Entering prepares: once inside, the message is stored and invisible. Leaving the block cleanly commits, unless
    ``commit`` or ``rollback`` was called inside. An exception inside sends nothing: whether the local work has happened
    is then for the checker to say, after ``check_after``.

    ``commit`` and ``rollback`` may be called as often as one likes, also after the block. Whichever of them, or of the
    checkers' and operators' decisions, reaches the coordinators first counts; all others get the state that it made.
    They return UNKNOWN where the answer did not come in time, or where the broker did not confirm: the check-back then
    finds the end, from the checker.
    """

    def __init__(
        self, message: Message, prepare: Callable[[], Publication], sender: Sender, decisions: Decisions
    ) -> None:
        self.message = message
        self.half_id: UUID = outbox_id(message)
        """The id of the half message, which is that of the message."""
        self.state = HalfState.UNKNOWN
        """What is known of it here: PREPARED inside the block, then what ``commit`` or ``rollback`` has returned."""
        self._prepare = prepare
        self._sender = sender
        self._decisions = decisions
        self._entered = self._prepared = False
        self._decided: Resolution | None = None
        self._span = ExitStack()

    async def __aenter__(self) -> Self:
        """Prepare.

        :raises InvalidMessage: the message can never be sent; nothing was sent.
        :raises UsageError: a time or a count of checks is out of range, or it was entered before; nothing was sent.
        :raises BrokerAway: there is no connection; nothing was sent.
        :raises Returned: there is no queue for half messages: no coordinator has ever run here. Nothing was stored.
        :raises Nacked: the broker refused it, also after the retries.
        :raises Unknown: no answer. If it was stored all the same, the check-back will ask for it: say ROLLBACK then.
        """
        if self._entered:
            raise UsageError("a half message is prepared once: call begin() for each")
        self._entered = True
        with ExitStack() as stack:
            attributes = {"messaging.system": "rabbitmq", "messaging.message.id": str(self.half_id)}
            stack.enter_context(span("half message", attributes | {"relmsg.group": self._sender.group}))
            with span("prepare"):
                await self._send_prepare()
            self._prepared, self.state = True, HalfState.PREPARED
            reach("half.after_prepare")
            self._span = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, if nothing was decided inside; after an exception leave it to the check-back.

        :raises HalfRolledBack: an operator or a checker has rolled it back while the local work was going on.
        :raises HalfOfAnotherGroup: another group has prepared a message of the same id before.
        """
        if error is not None:
            self._leave_open()
            self._span.__exit__(kind, error, trace)
            return
        with self._span:
            if self._decided is None:
                reach("half.before_commit")
                await self._commit_or_raise()

    async def commit(self) -> HalfState:
        """The local work is done: send the message. Returns the state it is in now.

        ROLLED_BACK means that it was rolled back before: it will not be sent. UNKNOWN: see above.

        :raises HalfOfAnotherGroup: another group has prepared a message of the same id before.
        :raises UsageError: it is not prepared.
        """
        return await self._decide(Resolution.COMMIT)

    async def rollback(self) -> HalfState:
        """The local work is not done and never will be: drop the message. Returns the state it is in now.

        COMMITTED means that it was committed before. UNKNOWN: see above.

        :raises HalfOfAnotherGroup: another group has prepared a message of the same id before.
        :raises UsageError: it is not prepared.
        """
        return await self._decide(Resolution.ROLLBACK)

    async def run(self, local_work: LocalWork) -> HalfState:
        """All of it in one call: prepare, do the local work, and decide as it says; see ``send_in_transaction``."""
        async with self:
            said = local_work(self)
            if inspect.isawaitable(said):
                said = await said
            if said is Resolution.COMMIT:
                await self._commit_or_raise()
            elif said is Resolution.ROLLBACK:
                await self.rollback()
            elif self._decided is None:
                self._leave_open()
        return self.state

    async def _send_prepare(self) -> None:
        receipt = await self._sender.send(self._prepare())
        if isinstance(receipt, Confirmed):
            return
        if isinstance(receipt, Returned):
            receipt.add_note("The queue is made by the first coordinator: start `relmsg relay` on this virtual host.")
        raise receipt

    async def _decide(self, resolution: Resolution) -> HalfState:
        if not self._prepared:
            raise UsageError("there is nothing to decide: prepare it first, by `async with half.begin(message) as tx`")
        self._decided = resolution
        if not self.state.is_final:
            self.state = HalfState.UNKNOWN
            with span(resolution.lower()):
                stated = await self._decisions.take(self.half_id, resolution, is_prepared=True)
            if not self.state.is_final:  # another task may have decided meanwhile
                self.state = stated
        return self.state

    async def _commit_or_raise(self) -> None:
        if await self.commit() is HalfState.ROLLED_BACK:
            raise HalfRolledBack(
                f"half message {self.half_id} was rolled back before this commit came: it will not be sent, though the "
                "local work is done"
            )

    def _leave_open(self) -> None:
        self._decided = self._decided or Resolution.UNKNOWN
        if not self.state.is_final:
            self.state = HalfState.UNKNOWN
            log.info("half message %s is left to the check-back", self.half_id)
