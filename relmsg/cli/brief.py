"""The broker and the database for the verbs that soon end: what goes wrong is told once, by the verb, in one line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.broker.connection import Connection
from relmsg.database import create_engine
from relmsg.migrate import require_current
from relmsg.settings import Settings

T = TypeVar("T")


def connection(settings: Settings, name: str) -> Connection:
    """The broker's connection for one command; to be entered. From here on only what is critical is logged: relmsg,
    aiormq and asyncio would tell a lost connection with tracebacks, and the command ends with an error anyway.

    :raises SettingsError: no broker is named.
    """
    for library in ("relmsg", "aiormq", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return Connection(settings.broker, name=name)


def asked(settings: Settings, ask: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """The answer to one question to the database, in an event loop of its own.

    :raises SettingsError: no database is named.
    :raises SchemaError: its tables do not fit this version.
    """

    async def run() -> T:
        engine = create_engine(settings.database)
        try:
            await require_current(engine, settings.schema)
            return await ask(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())
