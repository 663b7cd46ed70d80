"""The table of attacks in SECURITY.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[list[str]]:
    """The cells of the table of attacks."""
    table = (ROOT / "SECURITY.md").read_text().partition("## Attacks")[2]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")][2:]


def test_every_attack_has_a_test() -> None:
    """Each row names what happens, and files that hold tests."""
    assert len(rows()) > 10
    for attack, happens, tests in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert attack, tests
        assert happens, attack
        assert named, attack
        for each in named:
            assert re.search(r"^(async )?def test_", (ROOT / each).read_text(), re.MULTILINE), each
