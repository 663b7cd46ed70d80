"""How the rules for groups of half messages are written, and what they allow."""

from __future__ import annotations

import pytest

from relmsg.errors import SettingsError
from relmsg.half_rules import half_rules, rule_for
from relmsg.settings import Settings

RULES = "payments: receipts, shop as payments by pay-1, pay-2; a:b,c: amq.default as x; any: * as *; *: nothing"


@pytest.mark.parametrize(
    ("group", "exchange", "source", "login", "allowed"),
    [
        ("payments", "receipts", "payments", "pay-1", True),
        ("payments", "shop", "payments", "pay-2", True),
        ("payments", "shop", "payments", "other", False),
        ("payments", "shop", "payments", None, False),
        ("payments", "shop", "orders", "pay-1", False),
        ("payments", "shop", None, "pay-1", False),
        ("payments", "", "payments", "pay-1", False),
        ("payments", "SHOP", "payments", "pay-1", False),
        ("payments", "shop ", "payments", "pay-1", False),
        ("payments", "receipts, shop", "payments", "pay-1", False),
        ("a:b,c", "", "x", None, True),
        ("a:b,c", "amq.default", "x", None, True),
        ("a:b,c", "shop", "x", None, False),
        ("any", "whatever", None, None, True),
        ("unnamed", "shop", "payments", "pay-1", False),
        ("PAYMENTS", "shop", "payments", "pay-1", False),
    ],
)
def test_a_named_group_may_do_what_stands_there_and_nothing_else(
    group: str, exchange: str, source: str | None, login: str | None, allowed: bool
) -> None:
    """Exchange, source and login each have to be among those that are named."""
    rule = rule_for(half_rules(RULES), group)
    assert rule is not None
    assert (rule.refusal(exchange, source, login) is None) is allowed


def test_a_group_that_is_not_named_may_do_anything() -> None:
    """Unless there is a rule for all others."""
    assert rule_for(half_rules("payments: shop as payments"), "orders") is None
    assert rule_for(half_rules(""), "orders") is None


@pytest.mark.parametrize(
    "wrong",
    [
        "payments",
        "payments: shop",
        "payments: as payments",
        ": shop as a",
        "a: b as c; a: nothing",
        "a: b,,c as d",
        "a: b as c by",
    ],
)
def test_a_rule_that_is_written_wrong_is_a_settings_error(wrong: str) -> None:
    """A rule that cannot be read must not pass for none."""
    with pytest.raises(SettingsError, match="RELMSG_HALF_ALLOWED"):
        Settings.load({}, {"RELMSG_HALF_ALLOWED": wrong})
