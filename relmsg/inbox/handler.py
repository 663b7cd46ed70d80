"""A handler: the user's function, and how its parameters are supplied. Whatever cannot work is refused at once."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from relmsg.codec import decoder_for
from relmsg.errors import HandlerRefused
from relmsg.message import Message
from relmsg.retry import Retry

ANY_TYPE: Final = "*"
CHOICES = (
    "ask for Message, AsyncSession, or the event as dict, list, str, bytes, a dataclass, a msgspec.Struct or a "
    "pydantic model; or give the parameter a default"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A function for the messages of one type from one queue; ``type`` ``"*"`` takes what no other handler takes."""

    type: str
    queue: str
    consumer: str
    function: Callable[..., Awaitable[object]]
    retry: Retry
    timeout: float | None
    parameters: Parameters

    def decode(self, message: Message) -> Any:
        """The event in the form the function asks for; None if it asks for none.

        :raises Undecodable: the body is something else.
        """
        decode = self.parameters.decode
        return decode(message.body) if decode is not None and isinstance(message.body, bytes) else None

    async def __call__(self, message: Message, session: AsyncSession, event: Any) -> None:
        """Run the function. It works inside the transaction of ``session`` and must not end it."""
        supplied = {"message": message, "session": session, "event": event}
        await self.function(
            *(supplied[kind] for kind in self.parameters.positional),
            **{name: supplied[kind] for name, kind in self.parameters.keywords},
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a function's parameters are given: ``message``, ``session`` or ``event``, and how bytes become the event."""

    positional: tuple[str, ...]
    keywords: tuple[tuple[str, str], ...]
    decode: Callable[[bytes], Any] | None


def parameters(function: Callable[..., Any], session_class: type = AsyncSession) -> Parameters:
    """Look at a function's annotations.

    :raises HandlerRefused: it is not ``async def``, or one of its parameters cannot be supplied; says which.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    if not inspect.iscoroutinefunction(function):
        raise HandlerRefused(f"handler {name}: write it as `async def`; a blocking function would stop all the others")
    positional: list[str] = []
    keywords: list[tuple[str, str]] = []
    events: list[str] = []
    decode: Callable[[bytes], Any] | None = None
    gap = False
    for parameter in _signature(function, name):
        kind, decoder = _supplied(parameter, name, session_class)
        if decoder is not None:
            events.append(parameter.name)
            decode = decoder
        if kind is None:
            gap = True  # keeps its default; what follows can be given by name only
        elif parameter.kind is parameter.KEYWORD_ONLY or (gap and parameter.kind is not parameter.POSITIONAL_ONLY):
            keywords.append((parameter.name, kind))
        elif gap:
            raise HandlerRefused(
                f"handler {name}: the positional-only parameter {parameter.name!r} stands behind one that keeps its "
                "default: change their order"
            )
        else:
            positional.append(kind)
    if len(events) > 1:
        raise HandlerRefused(
            f"handler {name}: {' and '.join(map(repr, events))} both ask for the event; a message has one body"
        )
    return Parameters(tuple(positional), tuple(keywords), decode)


def _signature(function: Callable[..., Any], name: str) -> Iterator[inspect.Parameter]:
    """The parameters with their annotations as types; ``*args`` and ``**kwargs`` get nothing and are left out."""
    try:
        resolved = inspect.signature(function, eval_str=True).parameters.values()
    except Exception as error:
        text = getattr(error, "name", None) or str(error)
        unresolved = [each for each in inspect.signature(function).parameters.values() if text in str(each.annotation)]
        which = f"the annotation {unresolved[0].annotation!r} of parameter {unresolved[0].name!r}" if unresolved else ""
        raise HandlerRefused(
            f"handler {name}: {which or 'an annotation'} cannot be resolved ({error}): define or import the type at "
            "module level, not inside a function or under TYPE_CHECKING"
        ) from error
    return (each for each in resolved if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))


def _supplied(
    parameter: inspect.Parameter, name: str, session_class: type
) -> tuple[str | None, Callable[[bytes], Any] | None]:
    """What a parameter gets, and the decoder if it is the event; ``(None, None)`` where its default stays."""
    wanted = parameter.annotation
    while typing.get_origin(wanted) is typing.Annotated:
        wanted = typing.get_args(wanted)[0]
    if wanted is not parameter.empty:
        if wanted is Message:
            return "message", None
        if isinstance(wanted, type) and issubclass(wanted, AsyncSession) and issubclass(session_class, wanted):
            return "session", None
        decoder = _decoder(wanted, parameter.name, name)
        if decoder is not None:
            return "event", decoder
    if parameter.default is not parameter.empty:
        return None, None
    shown = "without an annotation" if wanted is parameter.empty else f"({inspect.formatannotation(wanted)})"
    raise HandlerRefused(f"handler {name}: parameter {parameter.name!r} {shown} cannot be supplied: {CHOICES}")


def _decoder(wanted: Any, parameter: str, name: str) -> Callable[[bytes], Any] | None:
    try:
        return decoder_for(wanted)
    except Exception as error:
        raise HandlerRefused(
            f"handler {name}: no JSON can be decoded into {inspect.formatannotation(wanted)} of parameter "
            f"{parameter!r}: {error}"
        ) from error
