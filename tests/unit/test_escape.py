"""Nothing that a message brings steers a terminal, forges a line of a log, or breaks JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from relmsg.cli import output
from relmsg.cli.logs import log_to_stderr

FORGED = "2026-01-01 00:00:00,000 INFO    relmsg: all is well"
HOSTILE = {
    "line feed": f"a\n{FORGED}",
    "carriage return": f"a\r{FORGED}",
    "both": f"a\r\n{FORGED}",
    "escape": "a\x1b[2J\x1b[1;1H",
    "title by OSC": "a\x1b]0;root\x07",
    "link by OSC 8": "a\x1b]8;;http://evil\x1b\\b",
    "C1 CSI": "a\x9b2J",
    "C1 OSC": "a\x9d0;root\x9c",
    "next line": f"a\x85{FORGED}",
    "bell and backspace": "a\x07\x08\x7f",
    "override": "a\u202egpj.exe",
    "isolates": "a\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u202a\u202b\u202c\u202d",
    "separators": f"a\u2028{FORGED}\u2029",
    "vertical tab": f"a\x0b\x0c\x1c\x1d\x1e{FORGED}",
    "invisible": "a\u200b\u2060\ufeff\u00ad",
    "tag characters": "a\U000e0041\U000e0042",
    "half a character": "a\udc9b2J",
    "nul": "a\x00b",
}


@pytest.fixture(autouse=True)
def _own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_line_of_the_log_stays_one_line_of_printable_text(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """The message of a log record is escaped, wherever in it the sender's words stand."""
    log_to_stderr()
    logging.getLogger("relmsg.x").warning("message %s of type %r is refused: %s", text, text, ValueError(text))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    line.encode()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_line_of_a_trace_passes_for_a_line_of_the_log(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """An exception's words come indented and escaped, so that a forged line is seen to be part of a trace."""
    log_to_stderr()
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("relmsg.x").exception("a handler has failed")
    first, *trace = capsys.readouterr().err[:-1].split("\n")
    assert first.endswith("a handler has failed")
    assert len(trace) >= 3
    assert all(line.startswith("  ") and line.isprintable() for line in trace)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_log_as_json_is_printable_and_says_the_same(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Control and bidi characters stand in JSON as escapes, and a program reads what was sent."""
    log_to_stderr(form="json")
    logging.getLogger("relmsg.x").warning("refused: %s", text, extra={"message_id": text, text: 1})
    line = capsys.readouterr().err[:-1]
    assert line.isprintable()
    told = json.loads(line)
    assert told["message"] == f"refused: {text}"
    assert told["message_id"] == text
    assert told[text] == 1


@pytest.mark.parametrize("text", [each for each in HOSTILE.values() if "\udc9b" not in each])
def test_what_a_command_prints_as_json_is_printable_and_says_the_same(text: str) -> None:
    """`--json` may go to a terminal as well: no character in it steers one."""
    printed = output.as_json({"type": text, "headers": {text: [text]}})
    assert printed.isprintable()
    assert json.loads(printed) == {"type": text, "headers": {text: [text]}}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_line_of_a_command_steers_the_terminal(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Tables, entries, plain lines and complaints are one line each, of printable characters and tabs."""
    output.emit(
        [{"type": text, "headers": {"a": text}, "body": text.encode(errors="replace")}], False, ["type", "body"]
    )
    output.entry(f"held {text}")
    output.write(f"consuming {text}")
    output.complain(text)
    told = capsys.readouterr()
    assert told.out.count("\n") == 4
    assert told.err.count("\n") == 1
    assert all(line.replace("\t", " ").isprintable() for line in [*told.out.split("\n"), *told.err.split("\n")])


def test_what_is_printable_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Words of any language are not escaped."""
    log_to_stderr()
    logging.getLogger("relmsg.x").warning("Grüße, 注文 und заказ: 'é' \\n")
    assert capsys.readouterr().err.endswith("Grüße, 注文 und заказ: 'é' \\n\n")


class Raises:
    """What somebody may log: its own code fails, with a text that steers the terminal."""

    def __str__(self) -> str:
        raise RuntimeError("\x1b[31m\n2026-11-29 forged")

    __repr__ = __str__


AROUND: dict[str, Any] = {}
AROUND["around"] = AROUND


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("%s", (Raises(),)),
        ("%d items", ("\x1b[31m\nforged",)),
        ("%s %s", ("\x9b31m",)),
        (Raises(), ()),
        ("%(a)s", ({},)),
    ],
)
def test_a_line_whose_arguments_do_not_fit_is_printable_too(
    capsys: pytest.CaptureFixture[str], form: str, message: Any, arguments: tuple[Any, ...]
) -> None:
    """It is one line as all others are; logging's own report of it would reach the terminal as it is."""
    log_to_stderr(form=form)
    logging.getLogger("shop").info(message, *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "shop" in line


@pytest.mark.parametrize(
    "extra",
    [
        {"amount": float("nan")},
        {"amounts": [float("inf")]},
        {"sums": {(1, 2): 3}},
        {"around": AROUND},
        {"what": Raises()},
        {"digits": 10**5000},
        {"\x1b[31m": b"\x1b[31m"},
    ],
    ids=lambda extra: next(iter(extra)).strip("\x1b"),
)
def test_a_log_as_json_tells_of_what_json_does_not_know(capsys: pytest.CaptureFixture[str], extra: Any) -> None:
    """What somebody gave as ``extra`` costs no line, and the line is JSON as every reader knows it."""
    log_to_stderr(form="json")
    logging.getLogger("shop").info("order %s", 7, extra=extra)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    told = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["message"] == "order 7"
    assert set(extra) <= set(told)
