"""What every consumer does with a message: one row of 100 bytes. And what it tells the suite."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Text, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TYPE, CONSUMER = "order.placed", "billing"
POOL, NOTE_BYTES = 10, 100
CHARGE = "INSERT INTO charge(message_id, note) VALUES ($1, $2)"


class Base(DeclarativeBase):
    """The tables of the service."""


class Charge(Base):
    """The effect of a message."""

    __tablename__ = "charge"
    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text)


def note(body: Any) -> str:
    """What is kept of a message."""
    return bytes(body[:NOTE_BYTES]).decode()


def started() -> float:
    """Say that messages are consumed from now on; the time. The suite looks at the CPU clocks at this word."""
    print("started", flush=True)
    return time.perf_counter()


async def warm(engine: AsyncEngine) -> None:
    """Open the pool's connections, as a service that has run for a while has."""
    opened = [await engine.connect() for _ in range(POOL)]
    for connection in opened:
        await connection.execute(text("SELECT 1"))
        await connection.close()
