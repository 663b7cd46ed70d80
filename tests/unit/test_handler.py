"""What a handler may ask for, and what is refused when it is registered."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any
from unittest.mock import sentinel

import msgspec
import pydantic
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg.errors import HandlerRefused, Undecodable, UnknownType, UsageError
from relmsg.inbox.handler import Handler, parameters
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.retry import Retry


@dataclass
class AsDataclass:
    id: int


class AsStruct(msgspec.Struct):
    id: int


class AsModel(pydantic.BaseModel):
    id: int


class OtherSession(AsyncSession):
    pass


def handler_of(function: Any, session_class: type = AsyncSession) -> Handler:
    return Handler(
        type="order.placed",
        queue="orders",
        consumer="billing",
        function=function,
        retry=Retry(),
        timeout=None,
        parameters=parameters(function, session_class),
    )


async def supplied(function: Any, body: bytes = b'{"id": 7}') -> None:
    handler = handler_of(function)
    message = Message(body=body)
    await handler(message, sentinel.session, handler.decode(message))


async def test_parameters_are_supplied_by_annotation_and_not_by_order_or_name() -> None:
    """A handler gets message, session and event wherever it asks for them, also by keyword only."""
    seen: list[object] = []

    async def handle(event: dict, anything: AsyncSession, *, message: Message) -> None:  # type: ignore[type-arg]
        seen.extend((event, anything, message.body))

    await supplied(handle)
    assert seen == [{"id": 7}, sentinel.session, b'{"id": 7}']


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (dict, {"id": 7}),
        (dict[str, int], {"id": 7}),
        (str, '{"id": 7}'),
        (bytes, b'{"id": 7}'),
        (AsDataclass, AsDataclass(7)),
        (AsStruct, AsStruct(7)),
        (AsModel, AsModel(id=7)),
        (Annotated[AsStruct, "documented"], AsStruct(7)),
    ],
)
async def test_the_event_comes_in_the_form_that_is_asked_for(kind: Any, expected: object) -> None:
    """The body is decoded into the annotated type."""
    seen: list[object] = []

    async def handle(event: Any) -> None:
        seen.append(event)

    handle.__annotations__["event"] = kind
    await supplied(handle)
    assert seen == [expected]


async def test_a_list_is_an_event_too() -> None:
    """A JSON array is decoded for a handler that asks for a list."""
    seen: list[object] = []

    async def handle(event: list[int]) -> None:
        seen.append(event)

    await supplied(handle, b"[1, 2]")
    assert seen == [[1, 2]]


@pytest.mark.parametrize("kind", [dict, dict[str, int], AsDataclass, AsStruct, AsModel, Annotated[AsStruct, "x"]])
async def test_a_list_of_events_asks_for_many_messages(kind: Any) -> None:
    """list[Event] and list[Message] get lists, which correspond; of a single message lists of one."""
    seen: list[list[Any]] = []

    async def store(events: Any, session: AsyncSession, *, messages: list[Message]) -> None:
        seen.append([events, messages])

    store.__annotations__["events"] = Annotated[list[kind], "many"]
    handler = handler_of(store)
    assert handler.takes_lists
    one, two = (Message(id=each, body=b'{"id": 7}') for each in "12")
    event = handler.decode(one)
    await handler(one, sentinel.session, event)
    await handler.call([one, two], sentinel.session, [event, event])
    assert seen == [[[event], [one]], [[event, event], [one, two]]]


@pytest.mark.parametrize("kind", [list, list[int], list[Any], list[int | None]])
def test_a_list_that_can_only_be_one_body_is_one_body(kind: Any) -> None:
    """Plain list, and a list of what is no body of its own, mean one message whose body is a JSON list."""

    async def handle(event: Any) -> None: ...

    handle.__annotations__["event"] = kind
    handler = handler_of(handle)
    assert not handler.takes_lists
    assert handler.decode(Message(body=b"[1]")) == [1]


@pytest.mark.parametrize("kind", [list[str], list[bytes], list[list], list[list[int]]])
def test_a_list_that_can_mean_either_is_refused(kind: Any) -> None:
    """Where the items could be bodies, and a body could be a list of them, the handler has to say which."""

    async def handle(event: Any) -> None: ...

    handle.__annotations__["event"] = kind
    with pytest.raises(HandlerRefused, match=r"can mean one body or many: ask for `list` .* for `list\[Message\]`"):
        handler_of(handle)


def test_one_message_and_many_at_once_are_refused() -> None:
    """A function gets one message or many."""

    async def mixed(message: Message, events: list[dict]) -> None: ...  # type: ignore[type-arg]

    async def other(event: dict, messages: list[Message]) -> None: ...  # type: ignore[type-arg]

    async def both(event: dict, events: list[dict]) -> None: ...  # type: ignore[type-arg]

    for function in (mixed, other):
        with pytest.raises(HandlerRefused, match=r"asks for one message and .* for many at once"):
            handler_of(function)
    with pytest.raises(HandlerRefused, match="both ask for the event"):
        handler_of(both)


def test_the_size_of_groups_is_an_option() -> None:
    """50 messages, 200 for a list handler, or what is asked for; at least one."""
    inbox = Inbox("billing", async_sessionmaker(create_async_engine("postgresql+asyncpg://")))

    async def handle(message: Message) -> None: ...

    async def store(messages: list[Message]) -> None: ...

    for number, (function, option, expected) in enumerate(
        [(handle, None, 50), (store, None, 200), (handle, 1, 1), (store, 7, 7)]
    ):
        inbox.handler(f"t{number}", queue="q", group=option)(function)
        assert inbox._registry.find("q", f"t{number}").group == expected
    with pytest.raises(UsageError, match="group"):
        inbox.handler("t", queue="q", group=0)


@pytest.mark.parametrize("kind", [dict, AsDataclass, AsStruct, AsModel])
def test_a_body_that_is_something_else_is_undecodable(kind: Any) -> None:
    """Decoding tells Undecodable with the reason, whatever the decoder's own error is."""

    async def handle(event: Any) -> None: ...

    handle.__annotations__["event"] = kind
    with pytest.raises(Undecodable, match="not what the handler expects"):
        handler_of(handle).decode(Message(body=b"<xml/>"))


async def test_what_cannot_be_supplied_keeps_its_default() -> None:
    """A parameter with a default that relmsg knows nothing of is left alone, wherever it stands."""
    seen: list[object] = []

    async def handle(message: Message, limit: int = 5, flag=None, event: str = "x", *args: int, **more: int) -> None:
        seen.extend((limit, flag, event, args, more))

    await supplied(handle, b"text")
    assert seen == [5, None, "text", (), {}]


async def test_a_method_and_a_partial_are_handlers() -> None:
    """Bound methods and partials of async functions can be registered."""

    class Billing:
        def __init__(self) -> None:
            self.seen: list[object] = []

        async def charge(self, event: dict, rate: int = 1) -> None:  # type: ignore[type-arg]
            self.seen.append((event, rate))

    billing = Billing()
    await supplied(billing.charge)
    await supplied(functools.partial(billing.charge, rate=2))
    assert billing.seen == [({"id": 7}, 1), ({"id": 7}, 2)]


def test_a_blocking_function_is_refused() -> None:
    """A plain def is refused, because it would stop every other handler of the process."""

    def handle(message: Message) -> None: ...

    with pytest.raises(HandlerRefused, match="async def"):
        parameters(handle)


def test_a_parameter_nobody_can_supply_is_named() -> None:
    """The refusal says which parameter it is, and what can be asked for."""

    async def handle(message: Message, limit: int) -> None: ...

    with pytest.raises(HandlerRefused, match=r"'limit' \(int\) cannot be supplied: ask for Message, AsyncSession"):
        parameters(handle)


def test_a_parameter_without_annotation_is_refused() -> None:
    """Without an annotation nobody can know what is wanted."""

    async def handle(message) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(HandlerRefused, match="'message' without an annotation"):
        parameters(handle)


def test_an_annotation_that_does_not_resolve_is_named() -> None:
    """A name that exists only under TYPE_CHECKING is told at registration, and not at the first message."""

    async def handle(event: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(HandlerRefused, match="'Nowhere' of parameter 'event' cannot be resolved"):
        parameters(handle)


def test_a_type_no_json_decodes_into_is_refused() -> None:
    """A union that JSON could not tell apart is refused at registration."""

    async def handle(event: list[AsDataclass | AsStruct]) -> None: ...

    with pytest.raises(HandlerRefused, match="'event'"):
        parameters(handle)


def test_two_events_are_refused() -> None:
    """A message has one body, so only one parameter may ask for it."""

    async def handle(event: dict, text: str) -> None: ...  # type: ignore[type-arg]

    with pytest.raises(HandlerRefused, match="'event' and 'text' both ask for the event"):
        parameters(handle)


def test_a_session_class_that_the_sessionmaker_does_not_make_is_refused() -> None:
    """A handler may name a subclass of AsyncSession exactly if it will get one."""

    async def handle(session: OtherSession) -> None: ...

    assert parameters(handle, OtherSession).positional == ("session",)
    with pytest.raises(HandlerRefused, match="OtherSession"):
        parameters(handle, AsyncSession)


def test_positional_only_behind_a_default_is_refused() -> None:
    """What could be given neither by position nor by name is refused."""

    async def handle(limit: int = 5, message: Message = None, /) -> None: ...  # type: ignore[assignment]

    with pytest.raises(HandlerRefused, match="positional-only parameter 'message'"):
        parameters(handle)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox("billing", async_sessionmaker())


async def charge(message: Message) -> None: ...


async def refund(message: Message) -> None: ...


def test_the_function_itself_stays_as_it_was(inbox: Inbox) -> None:
    """The decorator returns the function, so that tests and other code can call it."""
    assert inbox.handler("order.placed", queue="orders")(charge) is charge
    assert inbox.queues == ["orders"]


def test_two_handlers_for_one_type_of_a_queue_are_refused(inbox: Inbox) -> None:
    """Nobody could say which of them gets the message."""
    inbox.handler("order.placed", queue="orders")(charge)
    with pytest.raises(HandlerRefused, match=r"'order\.placed' from queue 'orders' go to charge already"):
        inbox.handler("order.placed", queue="orders")(refund)


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("*", "a"), ("a", "*"), ("*", "*")])
def test_one_type_from_two_queues_needs_two_consumers(inbox: Inbox, first: str, second: str) -> None:
    """A message that comes through two queues would be a duplicate on the second: refused, unless names differ (C1)."""
    inbox.handler(first, queue="orders")(charge)
    with pytest.raises(HandlerRefused, match="the same consumer 'billing'"):
        inbox.handler(second, queue="archive")(refund)
    inbox.handler(second, queue="archive", consumer="billing.archive")(refund)


def test_the_default_handler_takes_what_no_other_takes(inbox: Inbox) -> None:
    """Type * gets unknown types and messages without a type; a named type wins over it."""
    inbox.handler("order.placed", queue="orders")(charge)
    with pytest.raises(UnknownType, match=r"there are handlers for 'order\.placed'"):
        inbox._registry.find("orders", None)
    inbox.handler("*", queue="orders")(refund)
    assert inbox._registry.find("orders", "order.placed").function is charge
    assert inbox._registry.find("orders", "order.lost").function is refund
    assert inbox._registry.find("orders", None).function is refund


@pytest.mark.parametrize(
    "options", [{"prefetch": 0}, {"prefetch": 70_000}, {"concurrency": 0}, {"drain": -1}, {"missing_id": "guess"}]
)
def test_settings_that_could_not_work_are_refused(options: dict[str, Any]) -> None:
    """A prefetch of 0 would mean the whole queue at once, so it is refused, and so is all other nonsense."""
    with pytest.raises(UsageError):
        Inbox("billing", async_sessionmaker(), **options)


async def test_an_inbox_without_handlers_or_url_says_so(inbox: Inbox) -> None:
    """Running needs a URL and a handler, and the error says which is missing."""
    with pytest.raises(UsageError, match="URL"):
        await inbox.run()
    with pytest.raises(UsageError, match="no handler"):
        await inbox.run("amqp://localhost/")


@pytest.mark.parametrize("wrong", [create_async_engine("postgresql+asyncpg://"), "postgresql://", None])
def test_an_inbox_wants_a_sessionmaker(wrong):
    """An engine or a URL in its place is told when the inbox is made."""
    with pytest.raises(UsageError, match="async_sessionmaker"):
        Inbox("billing", wrong)


def test_the_prefetch_of_a_queue_holds_five_of_its_largest_groups_unless_one_is_told() -> None:
    """1000 for lists of 200, 250 for groups of 50 and less, and never more than AMQP can say."""
    inbox = Inbox("billing", async_sessionmaker())

    @inbox.handler("one", queue="singles")
    async def one(message: Message) -> None: ...

    @inbox.handler("alone", queue="alone", group=1)
    async def alone(message: Message) -> None: ...

    @inbox.handler("wide", queue="wide", group=200)
    async def wide(message: Message) -> None: ...

    @inbox.handler("many", queue="lists")
    async def many(messages: list[Message]) -> None: ...

    @inbox.handler("huge", queue="huge", group=60_000, consumer="huge")
    async def huge(messages: list[Message]) -> None: ...

    held = {"singles": 250, "alone": 250, "wide": 1000, "lists": 1000, "huge": 65_535}
    assert inbox._prefetch_of(None) == held
    assert inbox._prefetch_of(7) == dict.fromkeys(held, 7)
