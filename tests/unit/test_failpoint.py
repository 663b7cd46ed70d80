"""Failpoints: their registry, their notation, what they do."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relmsg import failpoint
from relmsg.errors import SettingsError
from relmsg.failpoint import ACTIONS, FAILPOINTS, FailpointReached, parse, reach

SOURCE = Path(failpoint.__file__).parent


def test_every_point_of_the_registry_stands_in_the_code_and_no_other():
    """The registry names exactly the points that the code passes."""
    passed = {
        name for file in SOURCE.rglob("*.py") for name in re.findall(r'\breach\(\s*"([^"]+)"', file.read_text("utf-8"))
    }
    assert passed == set(FAILPOINTS)


@pytest.mark.parametrize(
    ("text", "armed"),
    [
        ("", {}),
        (" , ,", {}),
        ("relay.after_read=kill", {"relay.after_read": ("kill", 1)}),
        ("relay.after_read=kill@", {"relay.after_read": ("kill", 1)}),
        ("relay.after_read=stop@12", {"relay.after_read": ("stop", 12)}),
        (
            " relay.after_read=kill@3 , consumer.after_ack=raise ",
            {"relay.after_read": ("kill", 3), "consumer.after_ack": ("raise", 1)},
        ),
    ],
)
def test_the_notation_is_read(text, armed):
    """name=action@count, separated by commas; the count defaults to 1."""
    assert parse(text) == armed


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "relay.after_read",
        "relay.after_read=",
        "relay.after_read=explode",
        "relay.after_read=kill@x",
        "relay.after_read=kill@-1",
        "relay.after_read=kill@1.5",
        "relay.after_reed=kill",
        "=kill",
        "relay.after_read=kill,oops=kill",
    ],
)
def test_a_wrong_notation_names_what_there_is(text):
    """A name, action or count that does not exist raises SettingsError with all names and actions."""
    with pytest.raises(SettingsError) as told:
        parse(text)
    for name in (*FAILPOINTS, *ACTIONS):
        assert name in str(told.value)


def test_an_unarmed_point_does_nothing(monkeypatch):
    """Points that are not armed are passed."""
    monkeypatch.setattr(failpoint, "_armed", {})
    for name in FAILPOINTS:
        reach(name)


def test_a_point_acts_once_at_its_count(monkeypatch):
    """A point armed with @3 acts the third time it is reached, and never again."""
    monkeypatch.setattr(failpoint, "_armed", parse("relay.after_read=raise@3"))
    reach("relay.after_read")
    reach("relay.before_delete")
    reach("relay.after_read")
    with pytest.raises(FailpointReached, match=r"relay\.after_read"):
        reach("relay.after_read")
    for _ in range(5):
        reach("relay.after_read")


def test_kill_ends_the_process_by_sigkill():
    """The variable arms a fresh process, and kill is SIGKILL: nothing can run after it."""
    program = "from relmsg.failpoint import reach; reach('relay.after_read'); print('1'); reach('relay.after_read')"
    done = subprocess.run(
        [sys.executable, "-u", "-c", program],
        env={"RELMSG_FAILPOINTS": "relay.after_read=kill@2"},
        cwd=SOURCE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n")
