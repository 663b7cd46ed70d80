"""The text of a failed message's exception, as logs and error copies may tell it.

Values of SQL statements are left out, and passwords in URLs. Of a message whose body is encrypted nothing is told but
the exception's class and where it was raised: a validator, say, quotes what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relmsg.db.failures import named
from relmsg.db.values import without_values
from relmsg.exceptions import stack_of, text_of, trace_of, type_name
from relmsg.security.encryption import is_secret
from relmsg.settings import redact

Headers = Mapping[str, Any] | None


def line_for(headers: Headers, error: BaseException) -> str:
    """The exception on one line, for a log."""
    return type_name(error) if is_secret(headers, error) else named(error)


def text_for(headers: Headers, error: BaseException) -> str:
    """The exception's text, for an error copy."""
    if is_secret(headers, error):
        return f"{type_name(error)}: its text is left out, for the body is encrypted"
    return redact(without_values(text_of(error))) or type_name(error)


def trace_for(headers: Headers, error: BaseException) -> str:
    """The exception's stack trace."""
    return stack_of(error) if is_secret(headers, error) else redact(without_values(trace_of(error)))
