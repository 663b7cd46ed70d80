"""One way to wait for the broker, and one place where its errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel

from relmsg.errors import AccessRefused, BrokerAway, BrokerRefused, RelmsgError
from relmsg.exceptions import text_of, type_name

T = TypeVar("T")

CLOSE_SECONDS = 2.0

# aiormq raises one class per AMQP reply code and drops the number; the classes that keep it carry it as first argument.
REPLY_CODES: dict[type[BaseException], int] = {
    amqp.ChannelAccessRefused: 403,
    amqp.ChannelNotFoundEntity: 404,
    amqp.ChannelLockedResource: 405,
    amqp.ChannelPreconditionFailed: 406,
    amqp.ConnectionFrameError: 501,
    amqp.ConnectionSyntaxError: 502,
    amqp.ConnectionCommandInvalid: 503,
    amqp.ConnectionChannelError: 504,
    amqp.ConnectionUnexpectedFrame: 505,
    amqp.ConnectionResourceError: 506,
    amqp.ConnectionNotAllowed: 530,
    amqp.ConnectionNotImplemented: 540,
    amqp.ConnectionInternalError: 541,
}


async def answer(call: Awaitable[T], *, within: float) -> T:
    """Wait for an answer of the broker, at most ``within`` seconds.

    aiormq tells a lost heartbeat by a CancelledError in a task that nobody cancelled; here it becomes BrokerAway. A
    real cancellation stays one, also where aiormq makes another error of it, or nothing at all, as its ``close`` does.
    A request that runs out of time closes its channel.

    :raises BrokerAway: no answer in time, or the connection was lost.
    :raises AccessRefused: user, password, virtual host or permission are refused.
    :raises BrokerRefused: any other AMQP error code.
    """
    before = _cancellations()
    try:
        async with asyncio.timeout(within):
            result = await call
    except asyncio.CancelledError as error:
        if really_cancelled():
            raise
        raise BrokerAway("the connection to RabbitMQ was lost") from error
    except Exception as error:
        if _cancellations() > before:  # whoever tries again on our errors would never hear of it
            raise asyncio.CancelledError from error
        if isinstance(error, TimeoutError):
            raise BrokerAway(f"RabbitMQ did not answer within {within:g} s") from error
        if isinstance(error, RelmsgError):
            raise
        raise translate(error) from error
    if _cancellations() > before:
        raise asyncio.CancelledError
    return result


async def close_quietly(channel: AbstractChannel) -> None:
    """Close a channel. Whatever goes wrong, at least this side is done with it, after CLOSE_SECONDS at the latest."""
    if not channel.is_closed:
        with suppress(Exception):
            await answer(channel.close(), within=CLOSE_SECONDS)


def why_closed(closing: asyncio.Future[Any]) -> BaseException:
    """What ended the channel with this ``closing``."""
    reason = None if closing.cancelled() else closing.exception()
    return reason or BrokerAway("the connection to RabbitMQ was lost")


def really_cancelled() -> bool:
    """Whether somebody asked this task to stop; False means that a CancelledError came out of the AMQP library."""
    return _cancellations() > 0


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def reply_code(error: BaseException | None) -> int | None:
    """The AMQP code with which the broker closed a channel or connection; None if it said nothing."""
    if error is None:
        return None
    if (code := REPLY_CODES.get(type(error))) is not None:
        return code
    first = error.args[0] if isinstance(error, amqp.ChannelClosed | amqp.ConnectionClosed) and error.args else None
    return first if isinstance(first, int) and first >= 300 else None


def translate(error: BaseException) -> RelmsgError:
    """The relmsg error for whatever the AMQP library raised."""
    if isinstance(error, asyncio.CancelledError):
        return BrokerAway("the connection to RabbitMQ was lost")
    text = _text(error)
    if isinstance(error, amqp.AuthenticationError | amqp.ProbableAuthenticationError):
        return AccessRefused(f"RabbitMQ refused the login: check user and password in RELMSG_AMQP_URL ({text})")
    if isinstance(error, amqp.InvalidFrameError) and "Connection.OpenOk" in text:
        # aiormq 7.2 keeps the broker's code and reason to itself when the virtual host cannot be opened.
        return AccessRefused(
            "RabbitMQ refused the virtual host: check that it exists, that it is running and that the user may use it"
        )
    code = reply_code(error)
    if code in (403, 530):
        return AccessRefused(f"RabbitMQ refused access: check virtual host and permissions ({text})")
    if code is None or code == 320:
        return BrokerAway(f"RabbitMQ is away: {text}")
    return BrokerRefused(code, text)


def _text(error: BaseException) -> str:
    texts = [str(part) for part in error.args if isinstance(part, str)]
    return texts[-1] if texts else text_of(error) or type_name(error)
