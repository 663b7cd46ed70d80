"""Commit and rollback on their way to the coordinators, and what these say of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from relmsg.broker.connection import Connection
from relmsg.broker.receipt import Confirmed
from relmsg.broker.subscriber import Delivery, Subscriber
from relmsg.clock import Clock
from relmsg.errors import BrokerAway, HalfOfAnotherGroup, HalfUnknown
from relmsg.exceptions import trace_of
from relmsg.failpoint import reach
from relmsg.half.protocol import IS_PREPARED, REASON, STATE, VERB, Refusal, Verb
from relmsg.half.sender import Sender
from relmsg.half.state import HalfState, Resolution
from relmsg.message import Message, uuid7
from relmsg.runtime.background import Background
from relmsg.runtime.bounded_log import BoundedLog

log = logging.getLogger(__name__)

REPLIES = 1000  # handed over ahead of their acks; each is an answer that somebody waits for
VERBS = {Resolution.COMMIT: Verb.COMMIT, Resolution.ROLLBACK: Verb.ROLLBACK}


class Stated(NamedTuple):
    """What a coordinator has answered: the state, and why the decision has changed nothing, where it was refused."""

    state: HalfState
    refusal: str | None


class Decisions:
    """Sends decisions, and has the coordinators' answers come to a private queue of this process.

    :param answer_within: seconds to wait for the answer, once the broker has confirmed the decision.
    """

    def __init__(
        self,
        sender: Sender,
        connection: Connection,
        *,
        answer_within: float,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sender = sender
        self._answer_within = answer_within
        self._lines = BoundedLog(log, clock.monotonic)
        self._came: asyncio.Queue[Delivery] = asyncio.Queue()
        self._replies = Subscriber(connection, "", self._came.put_nowait, prefetch=REPLIES, clock=clock, chance=chance)
        self._waiting: dict[str, asyncio.Future[Stated]] = {}
        self._tasks = [
            Background("answers of coordinators: subscribe", self._replies.run, chance),
            Background("answers of coordinators: read", self._read, chance),
        ]

    async def start(self) -> None:
        """Have a queue for the answers. :raises BrokerAway, AccessRefused, BrokerRefused: as the broker answers."""
        await self._replies.start()
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Give up the queue; whoever still waits for an answer has UNKNOWN at once."""
        for task in self._tasks:
            await task.stop()
        await self._replies.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(TimeoutError())

    async def take(self, half_id: UUID, resolution: Resolution, *, is_prepared: bool) -> HalfState:
        """Send a decision; the state in which the half message is now, UNKNOWN where nobody has said it in time.

        ``is_prepared``: the broker has confirmed the prepare, so a half message that no coordinator knows yet is one
        whose prepare is still on its way.

        :raises HalfUnknown: there is no such half message.
        :raises HalfOfAnotherGroup: it is another group's, or was prepared under another login.
        """
        decision_id = str(uuid7())
        answer = self._waiting[decision_id] = asyncio.get_running_loop().create_future()
        try:
            if not await self._is_confirmed(decision_id, half_id, resolution, is_prepared) and not answer.done():
                return HalfState.UNKNOWN
            if resolution is Resolution.COMMIT:
                reach("half.after_commit")
            async with asyncio.timeout(self._answer_within):
                stated = await answer
        except TimeoutError:
            self._lines.warning(
                "half message %s: no coordinator has answered to the %s within %g s, or the producer was closed "
                "before; the decision is in the broker",
                half_id,
                resolution.lower(),
                self._answer_within,
            )
            return HalfState.UNKNOWN
        finally:
            del self._waiting[decision_id]
        return _judged(half_id, resolution, stated)

    async def _is_confirmed(self, decision_id: str, half_id: UUID, resolution: Resolution, is_prepared: bool) -> bool:
        try:
            receipt = await self._sender.say(
                VERBS[resolution],
                half_id,
                {IS_PREPARED: is_prepared},
                message_id=decision_id,
                reply_to=self._replies.address,
            )
        except BrokerAway as error:
            failure: Exception = error
        else:
            if isinstance(receipt, Confirmed):
                return True
            failure = receipt
        self._lines.warning(
            "half message %s: the %s is not confirmed, the check-back will ask for it: %s",
            half_id,
            resolution.lower(),
            failure,
        )
        return False

    async def _read(self) -> None:
        while True:
            reply = await self._came.get()
            try:
                self._note(reply.message)
            except Exception as error:  # noqa: BLE001 - one answer must not cost the others
                self._lines.error("an answer of a coordinator could not be read\n%s", trace_of(error))
            await reply.ack()

    def _note(self, reply: Message) -> None:
        answer = self._waiting.get(reply.correlation_id or "")
        if answer is None or answer.done() or reply.headers.get(VERB) != Verb.STATE:
            return  # too late, or not for us
        try:
            state = HalfState(str(reply.headers.get(STATE)))
        except ValueError:
            self._lines.warning("a coordinator has answered with the state %r, which is none", reply.headers.get(STATE))
            return
        reason = reply.headers.get(REASON)
        answer.set_result(Stated(state, reason if isinstance(reason, str) and reason else None))


def _judged(half_id: UUID, resolution: Resolution, stated: Stated) -> HalfState:
    if stated.refusal is None:
        return stated.state
    told = f"half message {half_id}: the {resolution.lower()} is refused ({stated.refusal})"
    if stated.refusal == Refusal.UNKNOWN_ID:
        raise HalfUnknown(f"{told}: it was never prepared, or was decided and pruned")
    raise HalfOfAnotherGroup(f"{told}: only the group that prepared it may decide, it is still {stated.state}")
