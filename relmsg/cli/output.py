"""What the CLI prints: data on stdout, for people or for programs; one line for an error on stderr."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text


def emit(rows: Iterable[Mapping[str, Any]], json: bool, columns: Sequence[str]) -> None:
    """Print rows to stdout: with ``json`` as an array of whole objects; else their ``columns``, as a table on a
    terminal and otherwise as lines, cells padded and parted by one tab, under a line of the columns' names.

    Bytes are shown as UTF-8 with replacements. Outside of JSON a cell is one line without control characters: messages
    come from anyone, and could otherwise talk to the terminal.
    """
    if json:
        write(as_json([dict(row) for row in rows]))
        return
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in cells:
            table.add_row(*(Text(each) for each in line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in ([*columns], *cells):
        write("\t".join(each.ljust(width) for each, width in zip(line, widths, strict=True)).rstrip())


def as_json(value: object) -> str:
    """The value as JSON; what JSON does not know is shown as text."""
    return msgspec.json.encode(value, enc_hook=str).decode()


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
    return "".join(each if each.isprintable() else "�" for each in " ".join(text.split()))


def write(line: str) -> None:
    """Print one line to stdout."""
    sys.stdout.write(line + "\n")


def complain(message: str) -> None:
    """Print ``relmsg: <message>`` to stderr, as one line."""
    sys.stderr.write(f"relmsg: {printable(message)}\n")
