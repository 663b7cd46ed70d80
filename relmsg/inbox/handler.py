"""A handler: the user's function, and how its parameters are supplied. Whatever cannot work is refused at once."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from relmsg.arguments import name_of, shown_as
from relmsg.codec import decoder_for
from relmsg.db.failures import brief
from relmsg.errors import HandlerRefused
from relmsg.exceptions import attribute
from relmsg.inbox.handle.content_encoding import require_decoded
from relmsg.message import Message
from relmsg.retry import Retry

ANY_TYPE: Final = "*"
GROUP = 50
GROUP_OF_LISTS = 200
CHOICES = (
    "ask for Message, AsyncSession, or the event as dict, list, str, bytes, a dataclass, a msgspec.Struct or a "
    "pydantic model, or for many at once by list[Message] or list[Event]; or give the parameter a default"
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
    group: int = 1

    @property
    def takes_lists(self) -> bool:
        """Whether it is given many messages at once."""
        return self.parameters.lists

    def decode(self, message: Message) -> Any:
        """The event in the form the function asks for; None if it asks for none.

        :raises Undecodable: the body is something else.
        """
        decode = self.parameters.decode
        if decode is None or not isinstance(message.body, bytes):
            return None
        if message.content_encoding and decode is not bytes:
            require_decoded(message)
        return decode(message.body)

    def __call__(self, message: Message, session: AsyncSession, event: Any) -> Awaitable[object]:
        """Run the function for one message. It works inside the transaction of ``session`` and must not end it."""
        if self.takes_lists:
            return self.call([message], session, [event])
        return self._given(message, session, event)

    def call(self, messages: list[Message], session: AsyncSession, events: list[Any]) -> Awaitable[object]:
        """Run the function, which takes lists, for all these messages at once."""
        return self._given(messages, session, events)

    def _given(self, message: Any, session: AsyncSession, event: Any) -> Awaitable[object]:
        wanted, supplied = self.parameters, {MESSAGE: message, SESSION: session, EVENT: event}
        positional = [supplied[kind] for kind in wanted.positional]
        if not wanted.keywords:
            return self.function(*positional)
        return self.function(*positional, **{name: supplied[kind] for name, kind in wanted.keywords})


MESSAGE, SESSION, EVENT = "message", "session", "event"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a function's parameters are given: message, session or event, and how bytes become the event.

    ``lists``: it is given lists of messages and events, which correspond.
    """

    positional: tuple[str, ...]
    keywords: tuple[tuple[str, str], ...]
    decode: Callable[[bytes], Any] | None
    lists: bool = False


@dataclass(frozen=True, slots=True)
class _Supply:
    kind: str
    decode: Callable[[bytes], Any] | None = None
    many: bool | None = None  # None: it says nothing about lists


def parameters(function: Callable[..., Any], session_class: type = AsyncSession) -> Parameters:
    """Look at a function's annotations.

    :raises HandlerRefused: it is not ``async def``, or one of its parameters cannot be supplied; says which.
    """
    name = name_of(function)
    if not inspect.iscoroutinefunction(function):
        raise HandlerRefused(f"handler {name}: write it as `async def`; a blocking function would stop all the others")
    positional: list[str] = []
    keywords: list[tuple[str, str]] = []
    supplies: dict[str, _Supply] = {}
    gap = False
    wanted = list(_signature(function, name))
    collecting = [each for each in wanted if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for parameter in wanted:
        if parameter in collecting:
            _refuse_collecting(parameter, name, session_class)
            continue
        supply = _supplied(parameter, name, session_class)
        if supply is None:
            gap = True  # keeps its default; what follows can be given by name only
            continue
        supplies[parameter.name] = supply
        if parameter.kind is parameter.KEYWORD_ONLY or (gap and parameter.kind is not parameter.POSITIONAL_ONLY):
            keywords.append((parameter.name, supply.kind))
        elif gap:
            raise HandlerRefused(
                f"handler {name}: the positional-only parameter {parameter.name!r} stands behind one that keeps its "
                "default: change their order"
            )
        else:
            positional.append(supply.kind)
    if collecting and not supplies:
        raise HandlerRefused(
            f"handler {name}: it takes {_written(collecting[0])} and would be called without anything: {CHOICES}; a "
            "decorator around it keeps its parameters by functools.wraps"
        )
    decode, lists = _consistent(supplies, name)
    return Parameters(tuple(positional), tuple(keywords), decode, lists)


def _consistent(supplies: dict[str, _Supply], name: str) -> tuple[Callable[[bytes], Any] | None, bool]:
    """The one decoder, if any, and whether the function takes lists."""
    events = [each for each, supply in supplies.items() if supply.decode is not None]
    if len(events) > 1:
        raise HandlerRefused(
            f"handler {name}: {' and '.join(map(repr, events))} both ask for the event; a message has one body"
        )
    single = [each for each, supply in supplies.items() if supply.many is False]
    lists = [each for each, supply in supplies.items() if supply.many]
    if single and lists:
        raise HandlerRefused(
            f"handler {name}: {single[0]!r} asks for one message and {lists[0]!r} for many at once: make both lists, "
            "or none"
        )
    return (supplies[events[0]].decode if events else None), bool(lists)


def _signature(function: Callable[..., Any], name: str) -> Iterator[inspect.Parameter]:
    """The parameters with their annotations as types."""
    try:
        resolved = inspect.signature(function, eval_str=True).parameters.values()
    except Exception as error:
        told = brief(error)
        unknown = attribute(error, "name")  # what a NameError misses
        unresolved = [
            each
            for each in inspect.signature(function).parameters.values()
            if isinstance(each.annotation, str) and (unknown if isinstance(unknown, str) else told) in each.annotation
        ]
        which = "an annotation"
        if unresolved:
            which = f"the annotation {unresolved[0].annotation!r} of parameter {unresolved[0].name!r}"
        raise HandlerRefused(
            f"handler {name}: {which} cannot be resolved ({told}): define or import the type at "
            "module level, not inside a function or under TYPE_CHECKING"
        ) from error
    return iter(resolved)


def _refuse_collecting(parameter: inspect.Parameter, name: str, session_class: type) -> None:
    """``*args`` and ``**kwargs`` get nothing; one that asks for what could be supplied was meant otherwise."""
    if parameter.annotation is parameter.empty:
        return
    single = parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD, default=None)
    if _supplied(single, name, session_class) is not None:
        raise HandlerRefused(
            f"handler {name}: {_written(parameter)} would get nothing: write {parameter.name} without the asterisk, "
            "or ask for `list[Message]` or `list[Event]` to get many at once"
        )


def _supplied(parameter: inspect.Parameter, name: str, session_class: type) -> _Supply | None:
    """What a parameter gets; None where its default stays."""
    wanted = _plain(parameter.annotation)
    if wanted is not parameter.empty:
        if wanted is Message:
            return _Supply(MESSAGE, many=False)
        if isinstance(wanted, type) and issubclass(wanted, AsyncSession) and issubclass(session_class, wanted):
            return _Supply(SESSION)
        item = _item(wanted, parameter.name, name)
        if item is Message:
            return _Supply(MESSAGE, many=True)
        decoder = _decoder(wanted if item is None else item, parameter.name, name)
        if decoder is not None:
            return _Supply(EVENT, decoder, many=item is not None)
    if parameter.default is not parameter.empty:
        return None
    shown = "without an annotation" if wanted is parameter.empty else f"({_annotation(wanted)})"
    raise HandlerRefused(f"handler {name}: parameter {parameter.name!r} {shown} cannot be supplied: {CHOICES}")


def _item(wanted: Any, parameter: str, name: str) -> Any:
    """What a list of messages or events is a list of; None where no such list is asked for.

    ``list[X]`` asks for many at once where ``X`` alone could be asked for: Message, dict, dataclass, model. Where X can
    be no body of its own (``list[int]``), the list is one body.
    """
    if typing.get_origin(wanted) is not list:
        return None
    item = _plain(typing.get_args(wanted)[0])
    if item is Message:
        return item
    if item in (str, bytes) or (typing.get_origin(item) or item) is list:
        raise HandlerRefused(
            f"handler {name}: parameter {parameter!r} ({_annotation(wanted)}) can mean one body or many: "
            "ask for `list` if the body is a JSON list, for `list[Message]` if you want many messages at once"
        )
    return None if _decoder(item, parameter, name) is None else item


def _annotation(wanted: Any) -> str:
    return shown_as(lambda: inspect.formatannotation(wanted), wanted)


def _written(parameter: inspect.Parameter) -> str:
    return shown_as(lambda: str(parameter), parameter)


def _plain(annotation: Any) -> Any:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _decoder(wanted: Any, parameter: str, name: str) -> Callable[[bytes], Any] | None:
    try:
        return decoder_for(wanted)
    except Exception as error:
        raise HandlerRefused(
            f"handler {name}: no JSON can be decoded into {_annotation(wanted)} of parameter "
            f"{parameter!r}: {brief(error)}"
        ) from error
