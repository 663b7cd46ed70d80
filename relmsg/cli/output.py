"""What the CLI prints: data on stdout, for people or for programs; one line for an error on stderr."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relmsg.cli.escape import escaped, escaped_json
from relmsg.cli.table import cut, fitted

AGE_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 0))  # the last takes all that is left
Brief: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, object]]


def emit(
    rows: Iterable[Mapping[str, Any]],
    json: bool,
    columns: Sequence[str],
    *,
    wide: bool = False,
    brief: Brief | None = None,
) -> None:
    """Print rows to stdout: with ``json`` as an array of whole objects, else their ``columns`` under a line of names.

    On a terminal each row is one line that fits the screen: ids are whole, the rest is cut, ending with ``…``. There
    ``brief`` may give the few columns that are worth the room, the most important first. With ``wide``, and where
    stdout is no terminal, every column is whole, and cells are padded and parted by one tab.

    Bytes are shown as UTF-8 with replacements. Outside of JSON a cell is one line without control characters: messages
    come from anyone, and could otherwise talk to the terminal.
    """
    if json:
        write(as_json([dict(row) for row in rows]))
        return
    fit = sys.stdout.isatty() and not wide
    shown = [brief(row) for row in rows] if fit and brief is not None else list(rows)
    if fit and brief is not None and shown:
        columns = list(shown[0])
    cells = [[cell(row.get(column)) for column in columns] for row in shown]
    if fit:
        console = Console()
        for place, line in enumerate(fitted(columns, cells, console.width)):
            # The terminal wraps an id that is wider than itself; rich would break it with a line end of its own.
            console.print(Text(line, style="" if place else "bold"), soft_wrap=True)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in ([*columns], *cells):
        write("\t".join(each.ljust(width) for each, width in zip(row, widths, strict=True)).rstrip())


def report(rows: Iterable[Mapping[str, Any]], json: bool, columns: Sequence[str]) -> None:
    """Print rows as ``emit`` does, but on a terminal as a table in which long cells go on below: nothing is cut."""
    if json or not sys.stdout.isatty():
        emit(rows, json, columns)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(column))) for column in columns))
    Console().print(table)


def entry(line: str, *, wide: bool = False) -> None:
    """Print one entry of a list to stdout as printable text: on a terminal cut to its width, unless ``wide``."""
    line = printable(line)
    write(cut(line, Console().width) if sys.stdout.isatty() and not wide else line)


def age(moment: datetime | str | None) -> str:
    """How long ago a moment was, in the largest unit that fits: ``45s``, ``3m``, ``2h``, ``7d``; empty if unknown."""
    try:
        moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except (ValueError, OverflowError):
        return ""
    if moment is None:
        return ""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    unit, size = next((unit, size) for unit, size in AGE_UNITS if seconds >= size)
    return f"{seconds // max(1, size)}{unit}"


def as_json(value: object) -> str:
    """The value as JSON in printable characters; what JSON does not know is shown as text."""
    return escaped_json(msgspec.json.encode(value, enc_hook=str).decode())


def cell(value: object) -> str:
    """A value as one line of printable text; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds")
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode(errors="replace")
    elif isinstance(value, dict | list | tuple):
        value = msgspec.json.encode(value, enc_hook=str).decode()
    return printable(str(value))


def text(body: bytes) -> str:
    """A body as text; where it is none, as base64 that says so."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return "base64:" + b64encode(body).decode()


def printable(text: str) -> str:
    """The text on one line, with what could steer a terminal replaced."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(each if each.isprintable() else "�" for each in line)


def write(line: str) -> None:
    """Print one line to stdout, escaped: no caller has to think of it."""
    sys.stdout.write(escaped(line, keep="\t") + "\n")


def complain(message: str) -> None:
    """Print ``relmsg: <message>`` to stderr, as one line."""
    sys.stderr.write(f"relmsg: {printable(message)}\n")
