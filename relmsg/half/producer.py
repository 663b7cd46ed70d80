"""The producer: half messages for work that is not in the outbox's database. Needs RabbitMQ, and no PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from relmsg import arguments
from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.connection import Connection
from relmsg.broker.envelope import MAX_BODY_BYTES, seal, uuid_of
from relmsg.broker.wire import Publication
from relmsg.clock import Clock, SystemClock
from relmsg.errors import CheckerRefused, UsageError
from relmsg.half.checking import Checker, Checkers
from relmsg.half.decisions import Decisions
from relmsg.half.fence import Fence
from relmsg.half.half import half_of
from relmsg.half.member import Member
from relmsg.half.metrics import CheckerMetrics
from relmsg.half.protocol import group_name
from relmsg.half.sender import Sender
from relmsg.half.state import HalfState, Resolution
from relmsg.half.transaction import HalfTransaction, LocalWork
from relmsg.message import Message
from relmsg.retry import Retry, Seconds
from relmsg.security.encryption import Encryption
from relmsg.security.signing import Signing
from relmsg.settings import amqp_urls

C = TypeVar("C", bound=Checker)

Span = timedelta | float | None


class HalfProducer:
    """Sends messages together with work that no outbox can reach: another database, a file store, a payment API.

    A half message is prepared (stored, invisible to consumers), then the local work is done, then it is committed or
    rolled back. Where that word does not come, because the process died or the network failed, the coordinators, which
    run in `relmsg relay`, ask a *checker* of the group what became of the local work: first 6 s after the prepare, then
    every 30 s, up to 15 times that somebody was there to be asked; then the message is parked for an operator. So it is
    sent if and only if the local work has happened, as far as the checkers can tell. In the order of their commits
    messages are sent only while no check-back is needed.

    Where the local work is in the outbox's own database, use an ``Outbox``: it needs no second word.

    :param amqp_url: ``amqp://`` or ``amqps://``; several hosts may stand in it, separated by commas.
    :param group: the name of this service, the same in all of its processes. Any of them may be asked about any half
        message of the group, and no other group's word counts.
    :param source: sent as ``app_id`` where a message names none; the group unless told otherwise.
    :param deadline: seconds to wait for the connection, the write and the confirm, each.
    :param answer_within: seconds to wait for a coordinator's answer to a commit or rollback. After that its state is
        UNKNOWN here, while the broker has the decision.
    :param checker_timeout: seconds that a checker may take. Longer is UNKNOWN.
    :param concurrency: checkers that run at a time in this process.
    :param identify: put the login of ``amqp_url`` into every message, where RabbitMQ holds it against the connection's:
        then the group's word counts only from that login. False where the login is not in the URL (a certificate).
    :param signing: signs each message, so that receivers with ``Trust`` know it for this service's.
    :param encryption: encrypts each body before it is sent; only consumers with the key can read it.
    :param fence: which table ``fence`` and ``fenced_checker`` use; ``relmsg_fence`` unless told otherwise.
    :param bulk: see ``Connection``.
    :raises GroupRefused: no group can have this name.
    """

    def __init__(
        self,
        amqp_url: str,
        *,
        group: str,
        source: str | None = None,
        deadline: Seconds = 30.0,
        answer_within: Seconds = 5.0,
        checker_timeout: Seconds = 30.0,
        concurrency: int = 4,
        max_body_bytes: int = MAX_BODY_BYTES,
        identify: bool = True,
        signing: Signing | None = None,
        encryption: Encryption | None = None,
        fence: Fence | None = None,
        retry: Retry | int | None = None,
        bulk: bool | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        deadline, answer_within, checker_timeout = (
            arguments.seconds(f"HalfProducer({name}=…)", value, positive=True)
            for name, value in (
                ("deadline", deadline),
                ("answer_within", answer_within),
                ("checker_timeout", checker_timeout),
            )
        )
        arguments.whole("HalfProducer(concurrency=…)", concurrency, 1, 65_535, "checkers")
        arguments.whole("HalfProducer(max_body_bytes=…)", max_body_bytes, 1, arguments.MOST_BODY_BYTES, "bytes")
        arguments.flag("HalfProducer(identify=…)", identify)
        if bulk is not None:
            arguments.flag("HalfProducer(bulk=…)", bulk)
        if source is not None:
            arguments.text("HalfProducer(source=…)", source)
        if fence is not None:
            arguments.instance("HalfProducer(fence=…)", fence, Fence)
        arguments.text("HalfProducer(amqp_url)", amqp_url, most=None)
        arguments.clock_and_chance("HalfProducer", clock, chance)
        default = Retry(attempts=5, base=0.1, cap=2.0, budget=deadline)
        self.group = group_name(group)
        urls, clock = amqp_urls(amqp_url), clock or SystemClock()
        # Two: RabbitMQ blocks publishing connections in an alarm, and answers must come in all the same.
        self._publishing, self._receiving = (
            Connection(urls, name=f"{group}: {purpose}", bulk=bulk, clock=clock, chance=chance)
            for purpose in ("half messages", "answers and checks")
        )
        self._channel = ConfirmChannel(self._publishing, deadline=deadline)
        self._sender = Sender(
            self._channel,
            group=group,
            source=source or group,
            user_id=_login(urls[0]) if identify else None,
            retry=Retry.of("HalfProducer(retry=…)", retry, default),
            clock=clock,
            chance=chance,
        )
        self._decisions = Decisions(
            self._sender, self._receiving, answer_within=answer_within, clock=clock, chance=chance
        )
        self.metrics = CheckerMetrics()
        self._checkers = Checkers(checker_timeout, self.metrics)
        self._member = Member(
            self._receiving,
            self._sender,
            self._checkers,
            self.metrics,
            concurrency=concurrency,
            max_body_bytes=max_body_bytes,
            encryption=encryption,
            clock=clock,
            chance=chance,
        )
        if signing is not None:
            arguments.instance("HalfProducer(signing=…)", signing, Signing, "a key is given as Signing(key)")
        if encryption is not None:
            arguments.instance(
                "HalfProducer(encryption=…)", encryption, Encryption, "a key is given as Encryption(key)"
            )
        self._seal = partial(
            seal, source=source or group, max_body_bytes=max_body_bytes, signing=signing, encryption=encryption
        )
        self._fence = fence or Fence()
        self._entered = False
        self._running: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        """Connect; with a checker registered already, also begin to take checks.

        :raises BrokerAway: no host answers.
        :raises AccessRefused: the login is refused, or may not declare or consume what is needed.
        """
        if self._entered:
            raise UsageError("a HalfProducer is entered once: share it, or make another one")
        self._entered = True
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._publishing)
            stack.push_async_callback(self._channel.close)
            await stack.enter_async_context(self._receiving)
            stack.push_async_callback(self._decisions.close)
            await self._decisions.start()
            stack.push_async_callback(self._member.close)
            if self._checkers:
                await self._member.start()
            self._running = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let running checks finish, for five seconds, and disconnect. Half messages still open are left to the
        check-back, which asks another member, or waits for the next one."""
        running, self._running = self._running, None
        if running is not None:
            await running.__aexit__(kind, error, trace)

    @property
    def is_checking(self) -> bool:
        """Whether this member takes checks at this moment: it has a checker, and the broker serves it."""
        return self._member.is_consuming

    def checker(self, type: str) -> Callable[[C], C]:  # noqa: A002 - the word for it
        """Register an ``async def`` that says what became of the local work for messages of this type; ``"*"`` answers
        for all types that have none. It is given a ``HalfMessage`` and returns a ``Resolution``.

        ROLLBACK says that the local work is not done **and never will be**. Not finding it is not enough: the
        transaction may still be open, in this process or in another. In doubt it says UNKNOWN, and is asked again; an
        exception, a timeout and anything else it returns mean the same. ``fenced_checker`` makes one that knows.

        From its first checker on, this process takes checks of its group, also those for types it has no checker for,
        which it answers by UNKNOWN and with an alert: register all of them before, or at once.

        :raises CheckerRefused: the type has a checker, or it cannot be called with one half message.
        """
        if not isinstance(type, str):  # also @half.checker without a type
            raise CheckerRefused(
                f'checker(type): give the type of the messages it answers for, or "*", not {arguments.shown(type)}'
            )

        def register(function: C) -> C:
            self._checkers.add(type, function)
            if self._running is not None:
                self._member.start_soon()
            return function

        return register

    def begin(
        self, message: Message, *, check_after: Span = None, check_every: Span = None, max_checks: int | None = None
    ) -> HalfTransaction:
        """A half message; it is prepared by entering what is returned: ``async with half.begin(message) as tx``.

        It may carry an ordering key, headers and an expiration as any other; the expiration counts from the commit. A
        message that is prepared again under its id is the same half message: what has been decided about it stays.

        :param check_after: seconds from the prepare to the first check: longer than the local work usually takes.
        :param check_every: seconds from one check to the next, give or take a tenth.
        :param max_checks: so many received checks without a decision, and it is parked. All three are the
            coordinators' settings unless given.
        :raises InvalidMessage: the id of the message is not a UUID. All else that is wrong is raised on entering.
        :raises UsageError: this producer is not entered.
        """
        self._require_running()
        arguments.instance("begin(message)", message, Message)

        def prepare() -> Publication:
            half = half_of(
                self._seal(message),
                self.group,
                user_id=self._sender.user_id,
                check_after=check_after,
                check_every=check_every,
                max_checks=max_checks,
            )
            return half.prepare()

        return HalfTransaction(message, prepare, self._sender, self._decisions)

    async def send_in_transaction(
        self,
        message: Message,
        local_work: LocalWork,
        *,
        check_after: Span = None,
        check_every: Span = None,
        max_checks: int | None = None,
    ) -> HalfState:
        """Prepare, ``await local_work(tx)``, and do what it returns: ``Resolution.COMMIT``, ``ROLLBACK``, or UNKNOWN.

        Anything else that it returns, None included, is UNKNOWN: the check-back decides. So is an exception, which is
        raised. Returns the state of the half message.

        :raises HalfRolledBack: it said COMMIT, and somebody had rolled the half message back before.
        :raises RelmsgError: as entering ``begin`` does; the local work has then not begun.
        """
        transaction = self.begin(message, check_after=check_after, check_every=check_every, max_checks=max_checks)
        return await transaction.run(local_work)

    async def commit(self, half_id: UUID | str) -> HalfState:
        """Commit a half message of this group by its id, from any process. Returns as ``HalfTransaction.commit``.

        :raises HalfUnknown: there is no half message of this id.
        :raises HalfOfAnotherGroup: it is another group's.
        """
        return await self._decide(half_id, Resolution.COMMIT)

    async def rollback(self, half_id: UUID | str) -> HalfState:
        """Roll back a half message of this group by its id, from any process. Returns as ``HalfTransaction.rollback``.

        :raises HalfUnknown: there is no half message of this id.
        :raises HalfOfAnotherGroup: it is another group's.
        """
        return await self._decide(half_id, Resolution.ROLLBACK)

    async def fence(self, session: AsyncSession | AsyncConnection, tx: HalfTransaction) -> bool:
        """Put COMMIT into the fence, first of all in the local transaction: it commits or rolls back with the work.

        False: it stood there already, and the work has been done before; see ``Fence.commit``.

        :raises HalfRolledBack: a checker was first; roll the local transaction back.
        :raises TransactionRequired: the connection commits by itself (AUTOCOMMIT).
        """
        return await self._fence.commit(session, tx.half_id)

    def fenced_checker(self, sessions: Callable[[], AsyncSession] | AsyncEngine) -> Checker:
        """A checker that knows, where every local transaction of the type has called ``fence``:
        ``half.checker("order.placed")(half.fenced_checker(sessions))``.

        It puts ROLLBACK into the fence. Where that succeeds, the local transaction can never commit; where COMMIT is in
        the way, it has; where the transaction is still open, the answer is UNKNOWN.
        """
        return self._fence.checker(sessions)

    async def _decide(self, half_id: UUID | str, resolution: Resolution) -> HalfState:
        self._require_running()
        return await self._decisions.take(uuid_of(half_id), resolution, is_prepared=False)

    def _require_running(self) -> None:
        if self._running is None:
            raise UsageError("the producer is not connected: enter it by `async with HalfProducer(…) as half`")


def _login(url: str) -> str:
    """The login of an AMQP URL; without one it is RabbitMQ's default user."""
    return unquote(urlsplit(url).username or "guest")
