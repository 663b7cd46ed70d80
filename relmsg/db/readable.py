"""Selects columns so that Python can read them, whatever somebody has written into the table by plain SQL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, DateTime, Double, Interval, Text, case, cast, func
from sqlalchemy.dialects.postgresql import JSONB

from relmsg.codec import readable_json

EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
LISTED_CHARACTERS = 2_000


def readable_time(time: ColumnElement[Any]) -> ColumnElement[Any]:
    """A time, or the nearest one that Python knows: one row with another would fail the whole query."""
    return case((time.is_not(None), func.greatest(EARLIEST, func.least(LATEST, time))))


def listed(text: ColumnElement[Any]) -> ColumnElement[Any]:
    """A text as a list shows it: at most 2,000 characters, the last of which is ``…`` where more were there."""
    return case(
        (func.char_length(text) > LISTED_CHARACTERS, func.concat(func.left(text, LISTED_CHARACTERS - 1), "…")),
        else_=text,
    )


def shown(column: Column[Any], *, whole: bool) -> ColumnElement[Any]:
    """A column to be shown, under its name: texts as ``listed`` unless ``whole``, spans of time as seconds, and JSON as
    text, for ``with_headers``: SQLAlchemy would fail over what is nested too deep."""
    if isinstance(column.type, DateTime):
        readable = readable_time(column)
    elif isinstance(column.type, Interval):
        readable = seconds(column)
    elif isinstance(column.type, JSONB):
        readable = cast(column, Text)
    else:
        readable = listed(column) if isinstance(column.type, Text) and not whole else column
    return readable.label(column.name)


def seconds(span: ColumnElement[Any]) -> ColumnElement[float]:
    """A span of time as a number."""
    return cast(func.extract("epoch", span), Double)


def with_headers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its headers decoded; their text where they are nested deeper than 200 levels."""
    try:
        headers = readable_json(row["headers"])
    except ValueError:
        headers = row["headers"]
    return {**row, "headers": headers}
