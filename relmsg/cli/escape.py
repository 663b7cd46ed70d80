"""Escapes what could steer a terminal or forge a line in text that messages, peers and exceptions have brought.

Escaped is all that Python does not call printable: line ends, tabs and the other C0 controls (ESC, BEL), DEL, C1, which
holds CSI and OSC, U+202E and the other bidi controls, U+2028, invisible characters, and lone surrogates, which no
stream can write.
"""

from __future__ import annotations

import re

_BEYOND_16_BITS = 0x10000


def escaped(text: str, keep: str = "") -> str:
    """The text with each such character as Python writes it, such as ``\\x1b``, except for those of ``keep``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _literal(each) for each in text)


def escaped_trace(text: str) -> str:
    """A trace of several lines, each indented, so that none can pass for a line of the log."""
    return "\n".join(f"  {escaped(line, keep=chr(9))}" for line in re.split(r"\r?\n", text))


def escaped_json(text: str) -> str:
    """JSON text that says the same in printable characters. Only strings can hold others, and ``\\uXXXX`` stands for
    them there; between its parts the text has to be on one line."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _json_escape(each) for each in text)


def _literal(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_escape(character: str) -> str:
    code = ord(character)
    if code < _BEYOND_16_BITS:
        return f"\\u{code:04x}"
    code -= _BEYOND_16_BITS
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
