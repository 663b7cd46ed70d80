"""The AMQP library's errors become ours in one place."""

from __future__ import annotations

import asyncio

import pytest
from aiormq import channel as aiormq_channel
from aiormq import connection as aiormq_connection
from aiormq import exceptions as amqp

from relmsg.broker.answer import REPLY_CODES, answer, really_cancelled, reply_code, translate
from relmsg.errors import AccessRefused, BrokerAway, BrokerRefused, InvalidMessage


def test_the_table_is_aiormqs_own_turned_round():
    """Every class that aiormq makes of a reply code leads back to that code."""
    theirs = {**aiormq_channel.EXCEPTION_MAPPING, **aiormq_connection.EXCEPTION_MAPPING}
    assert {kind: code for code, kind in theirs.items()} == REPLY_CODES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, None),
        (amqp.ChannelNotFoundEntity("NOT_FOUND"), 404),
        (amqp.ChannelPreconditionFailed("PRECONDITION_FAILED"), 406),
        (amqp.ConnectionFrameError("FRAME_ERROR"), 501),
        (amqp.ConnectionChannelError("CHANNEL_ERROR"), 504),
        (amqp.ChannelClosed(311, "CONTENT_TOO_LARGE"), 311),
        (amqp.ConnectionClosed(320, "CONNECTION_FORCED"), 320),
        (amqp.ConnectionClosed(0, "normal closed"), None),
        (amqp.ConnectionClosed(200, "fine"), None),
        (amqp.ChannelClosed(None, None), None),
        (amqp.ChannelClosed(), None),
        (amqp.AMQPConnectionError(111, "Connect call failed"), None),
        (amqp.ChannelInvalidStateError("closed"), None),
        (OSError(104, "reset"), None),
        (OSError(404, "no AMQP code at all"), None),
        (asyncio.CancelledError(), None),
    ],
    ids=repr,
)
def test_the_reply_code_of_an_error(error, code):
    """The AMQP code is found where aiormq kept it and never taken from an errno."""
    assert reply_code(error) == code


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (amqp.ProbableAuthenticationError("ACCESS_REFUSED"), AccessRefused, "user and password"),
        (amqp.AuthenticationError("PLAIN", ["X"]), AccessRefused, "user and password"),
        (amqp.ConnectionNotAllowed("vhost not found"), AccessRefused, "virtual host"),
        (amqp.ConnectionClosed(530, "NOT_ALLOWED"), AccessRefused, "virtual host"),
        (amqp.InvalidFrameError("Expected one of ['Connection.OpenOk'], got <x>"), AccessRefused, "virtual host"),
        (amqp.ChannelAccessRefused("ACCESS_REFUSED"), AccessRefused, "permissions"),
        (amqp.ConnectionClosed(320, "CONNECTION_FORCED"), BrokerAway, "CONNECTION_FORCED"),
        (amqp.AMQPConnectionError(111, "Connect call failed"), BrokerAway, "Connect call failed"),
        (amqp.ChannelInvalidStateError("closed"), BrokerAway, "closed"),
        (asyncio.CancelledError(), BrokerAway, "connection to RabbitMQ was lost"),
        (RuntimeError(), BrokerAway, "RuntimeError"),
        (OSError(104, "Connection reset by peer"), BrokerAway, "reset by peer"),
        (amqp.ChannelNotFoundEntity("NOT_FOUND - no exchange"), BrokerRefused, "404.*no exchange"),
        (amqp.ChannelLockedResource("RESOURCE_LOCKED"), BrokerRefused, "405"),
        (amqp.ChannelPreconditionFailed("PRECONDITION_FAILED"), BrokerRefused, "406"),
        (amqp.ConnectionFrameError("FRAME_ERROR"), BrokerRefused, "501"),
    ],
    ids=repr,
)
def test_what_an_error_becomes(error, kind, words):
    """Login and permission are refusals, a code is BrokerRefused with that code, everything else is BrokerAway."""
    ours = translate(error)
    assert type(ours) is kind
    with pytest.raises(kind, match=words):
        raise ours
    if isinstance(ours, BrokerRefused):
        assert ours.reply_code == REPLY_CODES[type(error)]


async def test_an_answer_is_handed_on():
    """What the call returns comes back."""

    async def call():
        return 7

    assert await answer(call(), within=5) == 7


async def test_no_answer_in_time_is_broker_away():
    """A wait ends at its deadline, as BrokerAway."""
    with pytest.raises(BrokerAway, match=r"within 0\.01 s"):
        await answer(asyncio.Event().wait(), within=0.01)


async def test_a_cancellation_that_nobody_asked_for_is_a_lost_connection():
    """P3: a CancelledError out of the library, while nobody cancelled this task, becomes BrokerAway."""

    async def heartbeat_lost():
        raise asyncio.CancelledError

    with pytest.raises(BrokerAway, match="was lost"):
        await answer(heartbeat_lost(), within=5)
    assert not really_cancelled()


async def test_a_real_cancellation_stays_one():
    """Whoever cancels a task that waits for the broker gets a cancelled task."""
    waiting = asyncio.Event()

    async def call():
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(answer(call(), within=30))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_callers_own_timeout_stays_one():
    """An outer deadline that is shorter ends as the caller's TimeoutError, not as BrokerAway."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await answer(asyncio.Event().wait(), within=30)


async def test_our_own_errors_pass_and_others_keep_their_cause():
    """A relmsg error goes through as it is; any other one becomes the cause of ours."""

    async def fail(error):
        raise error

    ours = InvalidMessage("no")
    with pytest.raises(InvalidMessage) as told:
        await answer(fail(ours), within=5)
    assert told.value is ours
    theirs = amqp.ChannelPreconditionFailed("inequivalent arg")
    with pytest.raises(BrokerRefused, match="inequivalent arg") as refused:
        await answer(fail(theirs), within=5)
    assert refused.value.__cause__ is theirs


@pytest.mark.parametrize("made_of_it", [amqp.ChannelInvalidStateError("closed"), TimeoutError(), None], ids=repr)
async def test_a_cancellation_is_one_whatever_the_library_makes_of_it(made_of_it: Exception | None) -> None:
    """Whoever was told to stop, and goes on or tries again after our errors, would do so for ever."""
    waiting = asyncio.Event()

    async def call() -> None:
        waiting.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if made_of_it is not None:
                raise made_of_it from None

    task = asyncio.create_task(answer(call(), within=60))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_cleans_up_after_a_cancellation_gets_answers_and_errors_as_ever() -> None:
    """A cancellation that came before the request is not told twice."""
    said: list[object] = []

    async def refuse() -> None:
        raise amqp.ChannelPreconditionFailed("no")

    async def clean_up() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            said.append(await answer(asyncio.sleep(0, "closed"), within=60))
            with pytest.raises(BrokerRefused):
                await answer(refuse(), within=60)

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["closed"]
