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
_CUT = '(?:"'  # ... or where the text was cut
_RULES = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"\[parameters: .*?(?=\n\(Background on this error|\Z)", f"[parameters: {HIDDEN}]"),
        (rf"\b(DETAIL|CONTEXT): .*?{_NEXT}", rf"\1: {HIDDEN}"),  # psycopg tells the context, with parameters in it
        (rf"(invalid input for query argument \$\d+): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (rf"(invalid input (?:syntax|value) for [^\n:]+): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (rf"((?:field value|displacement) out of range): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (rf"\b(malformed \w+ literal|invalid \w+ value): .*?{_NEXT}", rf"\1: {HIDDEN}"),
        (rf'\bvalue ".*?{_CUT} is (out of range|too long)|…\Z)', rf"value {HIDDEN} is \1"),
        (rf'(?:(?<=: )|(?<=\) )|\A)".*?{_CUT} is out of range for type|…\Z)', f"{HIDDEN} is out of range for type"),
        (rf'\btime zone ".*?{_CUT} not recognized|…\Z)', f"time zone {HIDDEN} not recognized"),
        (rf'\binvalid value ".*?{_CUT} for "|…\Z)', f'invalid value {HIDDEN} for "'),
        (r"\bidentity key \(.*?\) conflicts", f"identity key {HIDDEN} conflicts"),
    )
)


def without_values(text: str) -> str:
    """The text of an exception or a trace, as it is where no database error stands in it."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
