"""Which routes a topology has: where a message would be stored, and where nobody would get it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from relmsg.errors import UnknownRoute
from relmsg.message import Headers, Message
from relmsg.topology import Binding, Exchange, Topology

REMEMBERED = 10_000  # routing keys may hold an id: as many answers are kept, and no more


class Routes:
    """Tells whether a message has a route in a topology.

    Known are the exchanges that stand in the topology, those that its bindings name, and the default exchange with the
    topology's queues. A routing key is compared where it can be: not for an exchange that is only named by a binding,
    that nobody binds to in this topology, that has an alternate exchange, or whose type is a plugin's. Bindings that
    others make are not known here: put them into the topology, or publish these messages through another outbox.
    """

    def __init__(self, topology: Topology) -> None:
        whole = topology.whole()
        self._exchanges = {each.name: each for each in whole.exchanges}
        self._queues = frozenset(each.name for each in whole.queues)
        self._bindings: dict[str, list[Binding]] = {}
        for binding in whole.bindings:
            self._bindings.setdefault(binding.exchange, []).append(binding)
        self._leads = lru_cache(maxsize=REMEMBERED)(self._leads_somewhere)

    def require(self, message: Message) -> None:
        """Return if the message has a route.

        :raises UnknownRoute: it has none; the text says whether exchange or routing key is unknown.
        """
        exchange = self._exchanges.get(message.exchange)
        if exchange is not None and exchange.type == "headers":
            found = not self._is_closed(exchange) or any(
                _headers_match(each, message.headers) for each in self._bindings[exchange.name]
            )
        else:
            found = self._leads(message.exchange, message.routing_key)
        if not found:
            raise UnknownRoute(self._reason(message))

    def _leads_somewhere(self, name: str, key: str) -> bool:
        if not name:
            return key in self._queues
        exchange = self._exchanges.get(name)
        if exchange is None:
            return name in self._bindings
        if exchange.internal:
            return False
        return not self._is_closed(exchange) or any(
            _key_matches(exchange.type, each.routing_key, key) for each in self._bindings[name]
        )

    def _is_closed(self, exchange: Exchange) -> bool:
        """Whether the bindings in the topology are all that can take a message from this exchange."""
        is_plugins = exchange.type.startswith("x-")
        return exchange.name in self._bindings and not is_plugins and "alternate-exchange" not in exchange.arguments

    def _reason(self, message: Message) -> str:
        name, key = message.exchange, message.routing_key
        if not name:
            return f"the topology has no queue {key!r} for the default exchange{_meant(key, self._queues)}"
        exchange = self._exchanges.get(name)
        if exchange is None:
            known = {*self._exchanges, *self._bindings}
            return f"the topology has no exchange {name!r}{_meant(name, known)}"
        if exchange.internal:
            return f"exchange {name!r} is internal: nobody can publish to it"
        if exchange.type == "headers":
            return f"the topology has no binding to exchange {name!r} that these headers match"
        keys = [each.routing_key for each in self._bindings[name]]
        return f"the topology has no binding to exchange {name!r} for routing key {key!r}{_meant(key, keys)}"


def _key_matches(type_: str, pattern: str, key: str) -> bool:
    if type_ == "fanout":
        return True
    if type_ == "topic":
        return _words_match(pattern.split("."), key.split("."))
    return pattern == key


def _words_match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """RabbitMQ's topic match: ``*`` is one word, ``#`` any number of words, none included."""
    reached = {0}  # so many words are matched by the pattern so far
    for part in pattern:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
    return len(words) in reached


def _headers_match(binding: Binding, headers: Headers) -> bool:
    """RabbitMQ's headers match: all have to agree unless ``x-match`` says any; ``x-`` names are left out."""
    match = str(binding.arguments.get("x-match", "all"))
    wanted = {
        name: value
        for name, value in binding.arguments.items()
        if name != "x-match" and (match.endswith("-with-x") or not name.startswith("x-"))
    }
    agree = (name in headers and headers[name] == value for name, value in wanted.items())
    return any(agree) if match.startswith("any") else all(agree)


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""
