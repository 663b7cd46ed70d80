"""Counting what became of every flight, from what is written down, and holding it against the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.flights.aircraft import FlightCancelled, aircraft, inbox
from examples.flights.departures import flights as flights_table
from examples.flights.flight import Flight
from examples.flights.topology import AIRCRAFT_QUEUE
from relmsg.schema import tables

relmsg = tables()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the final table; ``expected`` is None where nothing could be expected."""

    what: str
    count: int
    expected: int | None
    source: str

    @property
    def is_right(self) -> bool:
        return self.expected is None or self.count == self.expected


@dataclass(frozen=True, slots=True)
class Totals:
    """What is known of one aircraft."""

    flights: int
    miles: int
    last_departure: datetime


def totals(flights: Iterable[Flight]) -> dict[str, Totals]:
    """The totals by aircraft straight from the file, by the rule of `aircraft.py`: cancelled flights and flights that
    name no aircraft count for none; the last departure is that of the flight that was scheduled last.
    """
    result: dict[str, Totals] = {}
    for flight in flights:
        if flight.tailnum is None or flight.departed_at is None:
            continue
        before = result.get(flight.tailnum)
        result[flight.tailnum] = Totals(
            flights=(before.flights if before else 0) + 1,
            miles=(before.miles if before else 0) + flight.distance,
            last_departure=flight.departed_at,
        )
    return result


class Account:
    """The books of both services."""

    def __init__(self, departures: AsyncEngine, aircraft: AsyncEngine) -> None:
        self._departures = departures
        self._aircraft = aircraft

    async def committed(self) -> int:
        return await self._number(self._departures, select(func.count()).select_from(flights_table))

    async def published(self) -> int:
        """Rows ever written into the outbox: the last number that its identity column gave out."""
        last = text("SELECT pg_sequence_last_value(pg_get_serial_sequence('relmsg.outbox_message', 'id')::regclass)")
        return await self._number(self._departures, last)

    async def in_outbox(self) -> int:
        return await self._number(self._departures, select(func.count()).select_from(relmsg.outbox_message))

    async def handled(self) -> int:
        return await self._number(self._aircraft, select(func.count()).select_from(relmsg.inbox_message))

    async def open_transactions(self) -> int:
        """Transactions that a consumer has begun in the aircraft database and not committed."""
        return await self._number(
            self._aircraft,
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND state LIKE 'idle in transaction%'"
            ),
        )

    async def lines(self, flights: list[Flight], errors: str, duplicates: int) -> list[Line]:
        """The final table. ``errors`` is what `relmsg errors list --json` printed."""
        committed = await self._ids(self._departures, select(flights_table.c.message_id))
        handled = await self._ids(
            self._aircraft,
            select(relmsg.inbox_message.c.message_id).where(relmsg.inbox_message.c.consumer == inbox.name),
        )
        entries = json.loads(errors)
        failed = {UUID(entry["message_id"]) for entry in entries}
        expected = {flight.message_id for flight in flights if flight.is_cancelled}
        reason = f"{FlightCancelled.__module__}.{FlightCancelled.__qualname__}"
        told = {UUID(entry["message_id"]) for entry in entries if entry["exception"] == reason}
        published, waiting = await self.published(), await self.in_outbox()
        everything = len(flights)
        copies = f", in {len(entries)} copies" if len(entries) != len(failed) else ""
        return [
            Line("committed", len(committed), everything, "rows in the departures' own table"),
            Line("published", published, everything, "ids given out by the outbox table"),
            Line(
                "confirmed", published - waiting, everything, "rows gone from the outbox: deleted only after a confirm"
            ),
            Line("delivered", len(handled | failed), everything, "message ids in the inbox or in the error queue"),
            Line("handled once", len(handled), everything - len(expected), "rows in the inbox of the aircraft service"),
            Line("duplicates suppressed", duplicates, None, "counted by the consumers; at least, as one was killed"),
            Line("in the error queue", len(failed), len(expected), f"message ids in {AIRCRAFT_QUEUE}.errors{copies}"),
            Line("… as cancelled", len(told & expected), len(expected), f"of these, cancelled and {reason}"),
            Line("lost", len(committed - handled - failed), 0, "committed, and neither in the inbox nor in the errors"),
        ]

    async def differences(self, flights: list[Flight]) -> tuple[int, list[str]]:
        """How many aircraft were compared, and the ones that differ from the file."""
        expected = totals(flights)
        async with self._aircraft.connect() as connection:
            rows = await connection.execute(select(aircraft))
            real = {row.tailnum: Totals(row.flights, row.miles, row.last_departure) for row in rows}
        wrong = [
            f"{tailnum}: {real.get(tailnum)} in the table, {expected.get(tailnum)} in the file"
            for tailnum in sorted(expected.keys() | real.keys())
            if expected.get(tailnum) != real.get(tailnum)
        ]
        return len(expected), wrong

    async def _number(self, engine: AsyncEngine, query: object) -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(query) or 0)  # type: ignore[call-overload]

    async def _ids(self, engine: AsyncEngine, query: object) -> set[UUID]:
        async with engine.connect() as connection:
            return {UUID(str(each)) for each in await connection.scalars(query)}  # type: ignore[call-overload]
