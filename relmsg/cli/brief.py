"""A connection for the verbs that soon end: what goes wrong is told once, by the verb, in one line."""

from __future__ import annotations

import logging

from relmsg.broker.connection import Connection
from relmsg.settings import Settings


def connection(settings: Settings, name: str) -> Connection:
    """The broker's connection for one command; to be entered. From here on only what is critical is logged: relmsg,
    aiormq and asyncio would tell a lost connection with tracebacks, and the command ends with an error anyway.

    :raises SettingsError: no broker is named.
    """
    for library in ("relmsg", "aiormq", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return Connection(settings.broker(), name=name)
