"""Tells which messages are older than what an inbox remembers: sent again, their effect could happen twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from relmsg.cli import output
from relmsg.database import create_engine
from relmsg.db.failures import brief, translated
from relmsg.errors import RelmsgError
from relmsg.inbox.memory import Memory
from relmsg.inbox.pruning import Window
from relmsg.outbox.backlog import Backlog
from relmsg.outbox.changes import Chosen
from relmsg.settings import Settings


async def stored(settings: Settings) -> Mapping[str, Window]:
    """The dedup windows in the database that is named; none where none is. A database that cannot be asked is told."""
    if settings.database_url is None:
        return {}
    engine = create_engine(settings.database())
    try:
        with translated(settings.database_url):
            return await Memory(engine, settings.schema).windows()
    except (RelmsgError, SQLAlchemyError, OSError) as error:
        output.complain(f"whether a message is older than an inbox remembers cannot be told: {brief(error)}")
        return {}
    finally:
        await engine.dispose()


async def warn_of_rows(backlog: Backlog, chosen: Chosen) -> None:
    """Tell how many rows of the outbox are older than the consumer of this database remembers that forgets first."""
    windows = await Memory(backlog.engine, backlog.schema).windows()
    forgetful = {name: each.forgets_before for name, each in windows.items() if each.forgets_before is not None}
    if forgetful:
        name = max(forgetful, key=lambda each: forgetful[each])
        if count := await backlog.changes.count(replace(chosen, created_before=forgetful[name])):
            output.complain(warning(count, name, windows[name]))


def may_have_forgotten(
    windows: Mapping[str, Window], consumer: str | None, published_at: datetime | None
) -> str | None:
    """The consumer that may have handled a message of this time and forgotten it; None if nobody may. Where it is not
    known whose message it is, the one that forgets first counts.
    """
    names = windows if consumer is None else {consumer} & windows.keys()
    forgetful = {name: before for name in names if (before := windows[name].forgets_before) is not None}
    first = max(forgetful, key=lambda name: forgetful[name], default=None)
    return first if first is not None and published_at is not None and published_at < forgetful[first] else None


def warning(count: int, consumer: str, window: Window) -> str:
    """What is to be told of so many messages."""
    those = "1 message is" if count == 1 else f"{count} messages are"
    keeps = f" ({_days(window.keeps)})" if window.keeps is not None else ""
    return (
        f"{those} older than what consumer {consumer!r} remembers{keeps}: what it has handled and forgotten takes "
        "effect once more"
    )


def _days(keeps: timedelta) -> str:
    days = keeps.total_seconds() / 86_400
    return f"{days:g} days" if days >= 1 else f"{keeps.total_seconds() / 3600:g} hours"
