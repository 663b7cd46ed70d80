"""What callers give may have texts that raise, hang, end the process or are 3 MB long, and is refused in one line."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from relmsg import Exchange, HalfMessage, Inbox, Queue, Resolution, Topology
from relmsg.arguments import MOST_SHOWN, name_of, shown
from relmsg.broker.headers import check_headers
from relmsg.errors import CheckerRefused, HandlerRefused, RelmsgError
from relmsg.half.checking import Checkers
from relmsg.half.desk import half_uuid
from relmsg.half.protocol import group_name
from relmsg.inbox.handler import parameters


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relmsg.exceptions.TEXT_SECONDS", 0.2)


class Raises:
    """Its texts raise."""

    def __repr__(self) -> NoReturn:
        raise ZeroDivisionError("repr")

    __str__ = __repr__


class Hangs:
    """Its texts never come."""

    def __repr__(self) -> str:
        time.sleep(0.5)
        return ""

    __str__ = __repr__


class Long:
    """Its texts are 3 MB, on many lines."""

    def __repr__(self) -> str:
        return "long\n" * 600_000

    __str__ = __repr__


class Exits:
    """Its texts end the process."""

    def __repr__(self) -> NoReturn:
        raise SystemExit("repr")

    __str__ = __repr__


HOSTILE: list[Callable[[], object]] = [Raises, Hangs, Long, Exits]


class Spiteful(Exception):
    """An exception with the texts of another object."""

    def __init__(self, texts: object) -> None:
        self.texts = texts

    def __str__(self) -> str:
        return str(self.texts)

    def __repr__(self) -> str:
        return repr(self.texts)


@pytest.mark.parametrize("make", HOSTILE)
def test_a_value_of_any_making_is_shown_short_and_on_one_line(make: Callable[[], object]) -> None:
    """``shown`` does not fail, hang or grow, whatever the repr does; nor does the name of a function without a name."""
    value = make()
    for told in (shown(value), shown([value]), name_of(value)):
        assert len(told) <= MOST_SHOWN
        assert "\n" not in told


@pytest.mark.parametrize("make", HOSTILE)
def test_what_a_handler_is_refused_for_may_have_any_text(make: Callable[[], object]) -> None:
    """A handler whose annotations, defaults or decoders have hostile texts is refused by name, in one short line."""
    hostile = make()

    async def annotated(event: hostile) -> None: ...  # type: ignore[valid-type]

    async def defaulted(*events: dict, other: object = hostile) -> None: ...  # type: ignore[type-arg]

    class Model:
        @classmethod
        def __class_getitem__(cls, _: object) -> object:
            raise Spiteful(hostile)

    async def unresolved(event: "Model[int]") -> None: ...

    annotated.__annotations__["event"] = hostile
    unresolved.__globals__["Model"] = Model
    try:
        for handler in (annotated, defaulted, unresolved):
            with pytest.raises(HandlerRefused) as refusal:
                parameters(handler)
            assert len(str(refusal.value)) < 1000
    finally:
        del unresolved.__globals__["Model"]


@pytest.mark.parametrize("make", HOSTILE)
def test_what_a_checker_is_refused_for_may_have_any_text(make: Callable[[], object]) -> None:
    """An object that is no checker, and a signature that raises, are refused in one short line."""
    hostile = make()

    async def check(half: HalfMessage) -> Resolution:
        return Resolution.UNKNOWN

    class Unsigned:
        @property
        def __signature__(self) -> NoReturn:
            raise Spiteful(hostile)

        async def __call__(self, half: HalfMessage) -> Resolution:
            return Resolution.UNKNOWN

    checkers = Checkers(timeout=1.0)
    for type_, function in ((hostile, check), ("order.placed", hostile), ("order.placed", Unsigned())):
        with pytest.raises(CheckerRefused) as refusal:
            checkers.add(type_, function)  # type: ignore[arg-type]
        assert len(str(refusal.value)) < 1000


def _refusals(hostile: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "exchange name", lambda: Exchange(hostile)
    yield "queue name", lambda: Queue(hostile)
    yield "queue arguments", lambda: Queue("q", arguments={"x-a": hostile})
    yield "names of queue arguments", lambda: Queue("q", arguments={hostile: 1})
    yield "queue type", lambda: Queue("q", type=hostile)
    yield "queue overflow", lambda: Queue("q", overflow=hostile)
    yield "delivery limit", lambda: Queue("q", delivery_limit=hostile)
    yield "exchange type", lambda: Exchange("e", type=hostile)
    yield "topology", lambda: Topology(exchanges=hostile)
    yield "group", lambda: group_name(hostile)
    yield "half id", lambda: half_uuid(hostile)
    yield "header name", lambda: check_headers({hostile: 1})
    yield "nested header name", lambda: check_headers({"a": {hostile: 1}})
    yield "inbox", lambda: Inbox(hostile, hostile)


@pytest.mark.parametrize("make", HOSTILE)
def test_what_an_argument_is_refused_for_may_have_any_text(make: Callable[[], object]) -> None:
    """Values with hostile texts are refused by relmsg's own errors, each in a short line."""
    for what, refuse in _refusals(make()):
        with pytest.raises(RelmsgError) as refusal:
            refuse()
        assert len(str(refusal.value)) < 1000, what
