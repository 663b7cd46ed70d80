"""Which messages a group of half messages may have sent: to which exchanges, as which sources, under which logins.

Written as ``payments: receipts, shop as payments by payments-login; *: nothing``. A group that is named may do what
stands there and nothing else; one that is not named may do anything, unless there is a rule for ``*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ANY = "*"
NOTHING = "nothing"
DEFAULT_EXCHANGE = "amq.default"  # how the exchange without a name is written, as in RabbitMQ's own permissions
GRAMMAR = "GROUP: EXCHANGE, … as SOURCE, … [by LOGIN, …]; …, or GROUP: nothing"
RULE = re.compile(r"(?P<exchanges>.+?)\s+as\s+(?P<sources>.+?)(?:\s+by\s+(?P<logins>.+))?")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a group may do. ``*`` in a set is any; ``logins`` is None where none is demanded."""

    exchanges: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    logins: frozenset[str] | None = None

    def refusal(self, exchange: str, source: str | None, login: str | None) -> str | None:
        """Why a message is not allowed; None if it is."""
        if not _holds(self.exchanges, exchange or DEFAULT_EXCHANGE):
            return f"exchange {exchange or DEFAULT_EXCHANGE!r} is not among those that it may send to"
        if not _holds(self.sources, source):
            return f"source {source!r} is not among those that it may send as" if source else "it has to name a source"
        if self.logins is not None and not _holds(self.logins, login):
            return f"login {login!r} is not among those that it may use" if login else "its login is not known"
        return None


def half_rules(text: str) -> dict[str, Rule]:
    """The rules by group.

    :raises ValueError: with the rule of writing them that was broken.
    """
    rules: dict[str, Rule] = {}
    for entry in filter(str.strip, text.split(";")):
        parts = re.split(r":\s+", entry.strip(), maxsplit=1)  # a group's name may hold a colon
        if len(parts) < 2 or not all(parts):
            raise ValueError(f"has {entry.strip()!r}: write {GRAMMAR}")
        group, said = parts
        if group in rules:
            raise ValueError(f"names group {group!r} twice")
        if said == NOTHING:
            rules[group] = Rule()
            continue
        matched = RULE.fullmatch(said)
        if matched is None or re.search(r"\s(as|by)$", said):
            raise ValueError(f"has {entry.strip()!r}: write {GRAMMAR}")
        logins = matched["logins"]
        rules[group] = Rule(
            _names(matched["exchanges"]), _names(matched["sources"]), None if logins is None else _names(logins)
        )
    return rules


def rule_for(rules: Mapping[str, Rule], group: str) -> Rule | None:
    """What holds for a group; None where nothing was said."""
    return rules.get(group, rules.get(ANY))


def _names(text: str) -> frozenset[str]:
    names = frozenset(each.strip() for each in text.split(","))
    if "" in names:
        raise ValueError(f"has a comma too many in {text!r}")
    return names


def _holds(names: frozenset[str], name: str | None) -> bool:
    return ANY in names or name in names
