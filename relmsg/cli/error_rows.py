"""How the messages of an error queue are shown: as rows of a list, and whole."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import msgspec

from relmsg.broker.error_entry import ErrorEntry
from relmsg.cli import output
from relmsg.codec import readable_json

COLUMNS = ("message_id", "type", "exception", "failed_at", "reason", "exception_message")
LONG = ("stacktrace", "headers", "properties", "body")  # in `show` only


def brief(row: Mapping[str, Any]) -> dict[str, object]:
    """The columns for a terminal: which message, since when, and what was wrong with it."""
    raised = (row["exception"] or "").rpartition(".")[2]
    problem = ": ".join(filter(None, (raised, row["exception_message"]))) if raised else row["reason"]
    return {
        "message_id": row["message_id"],
        "age": output.age(row["failed_at"]),
        "problem": problem,
        "type": row["type"],
    }


def listed(entry: ErrorEntry) -> dict[str, Any]:
    """What a list tells of an entry, as JSON can have it. Headers, properties and body are not looked at."""
    row = asdict(replace(entry, headers={}, properties={}, body=b"", altered=()))  # asdict would copy these
    row |= {"size": len(entry.body), "altered": list(entry.altered)}
    return {name: value for name, value in row.items() if name not in LONG}


def row_of(entry: ErrorEntry) -> dict[str, Any]:
    """All that is known of an entry, as JSON can have it."""
    content, encoding = _body(entry)
    return listed(entry) | {
        "stacktrace": entry.stacktrace,
        "headers": dict(entry.headers),
        "properties": dict(entry.properties),
        "body_encoding": encoding,
        "body": content,
    }


def _body(entry: ErrorEntry) -> tuple[Any, str]:
    """The body as JSON where it says so and is, and is not nested too deep; else as text, else as base64; and which of
    these."""
    if "json" in str(entry.properties.get("content_type", "")):
        with suppress(ValueError):
            return readable_json(entry.body), "json"
    try:
        return entry.body.decode(), "text"
    except UnicodeDecodeError:
        return b64encode(entry.body).decode(), "base64"


def write_whole(row: dict[str, Any]) -> None:
    """Print all of a row on many lines."""
    width = max(map(len, row))
    for name, value in row.items():
        if name not in LONG:
            output.write(f"{name:<{width}}  {output.cell(value)}".rstrip())
    for part in ("properties", "headers"):
        output.write(f"{part}:")
        for name, value in row[part].items():
            if value != row["stacktrace"]:
                output.write(f"  {output.printable(name)}: {output.cell(value)}")
    body = row["body"]
    if row["body_encoding"] == "json":
        body = msgspec.json.format(msgspec.json.encode(body), indent=2).decode()
    for part, text in (("stacktrace", row["stacktrace"] or ""), ("body", body)):
        output.write(f"{part}:")
        for line in text.splitlines():
            output.write("  " + "".join(each if each.isprintable() else "�" for each in line.expandtabs(4)))
