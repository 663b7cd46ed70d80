"""Leaves out of a database error's text what the application had given to the statement.

A handler's error goes with its message into the error queue, where others read it than may read the database. What was
wrong is told; the values are not: parameters as SQLAlchemy lists them, PostgreSQL's DETAIL, which quotes the row or its
key, and what a driver or the server quotes as invalid.
"""

from __future__ import annotations

import re

HIDDEN = "(hidden)"
# Values may hold line ends, so each ends where the next part of such a text begins.
_NEXT = r"(?=\n\[SQL: |\n\(Background on this error|\n\n(?:The above exception|During handling)|\Z)"
_RULES = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"\[parameters: .*?(?=\n\(Background on this error|\Z)", f"[parameters: {HIDDEN}]"),
        (rf"\bDETAIL: .*?{_NEXT}", f"DETAIL: {HIDDEN}"),
        (rf"(invalid input for query argument \$\d+): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (rf"(invalid input (?:syntax|value) for [^\n:]+): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (rf"(field value out of range): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (r'\bvalue ".*?" is (out of range|too long)', rf"value {HIDDEN} is \1"),
    )
)


def without_values(text: str) -> str:
    """The text of an exception or a trace, as it is where no database error stands in it."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
