"""Readers of settings: from what a TOML file, the environment or a flag says to the value.

Each raises ValueError with the rule that was broken; the caller says which setting it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def line_break(text: str) -> str | None:
    """What is wrong with a text that holds the end of a line; None if it holds none.

    It comes from a file that was written on Windows, or from ``$(cat file)`` in quotes, and is seen in no terminal.
    """
    if "\r" in text:
        return r"holds a carriage return (\r): the file it comes from has Windows line ends, save it with plain ones"
    if "\n" in text:
        return r"holds a line feed (\n): take the end of the line away"
    return None


def http_url(text: str) -> str:
    """An http:// or https:// URL with a host."""
    if not re.fullmatch(r"https?://[^/\s]\S*", text):
        raise ValueError("is not http://user:password@host:15672")
    return text


def printable(text: str) -> str:
    """A text that can be shown, and is not empty."""
    if not text or not text.isprintable():
        raise ValueError("is not printable text")
    return text


def address(text: str) -> str:
    """A host and a port, or an empty text."""
    host, colon, port = text.rpartition(":")
    if text and not (host and colon and port.isdecimal() and int(port) <= 65535):
        raise ValueError("is not host:port (port 0 takes any free one, an empty text turns it off)")
    return text


def number(kind: type[int] | type[float], least: float, most: float, unit: str) -> Callable[[Any], Any]:
    """A reader of numbers within limits; TOML gives numbers, the environment gives texts."""
    article = "a whole number of" if kind is int else "a number of"
    rule = f"is not {article} {unit} from {least:g} to {most:,.0f}"

    def read(value: Any) -> Any:
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(rule) from None
        if isinstance(value, bool) or not least <= number <= most or (kind is int and number != float(value)):
            raise ValueError(rule)
        return number

    return read


def one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    """A reader of one word out of a few, in small or capital letters."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in choices:
            raise ValueError(f"is not {', '.join(choices[:-1])} or {choices[-1]}")
        return value.lower()

    return read


SWITCH = {"on": True, "true": True, "off": False, "false": False}


def switch(value: Any) -> bool:
    """TOML gives true and false, the environment texts."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in SWITCH:
        raise ValueError("is not on, off, true or false")
    return SWITCH[value.lower()]


def single(value: Any, read: Callable[[Any], Any]) -> Any:
    """The value, read by its reader; only numbers and switches may stand in a TOML file without quotes."""
    if isinstance(value, str) and (broken := line_break(value)):
        raise ValueError(broken)
    if isinstance(value, dict | list):
        raise ValueError("is not a single value: settings stand at the top of the file, outside of [tables]")
    is_number = getattr(read, "__qualname__", "").startswith("number")
    if not is_number and read is not switch and not isinstance(value, str):
        raise ValueError("is not a text: put it in quotes")
    return read(value)
