"""The service that knows the aircraft: `relmsg consume examples.flights.aircraft:inbox`.

It has a database of its own, and keeps for each aircraft how many flights it made, how many miles, and its last
departure.
"""

from __future__ import annotations

import os

from sqlalchemy import TIMESTAMP, Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.flights.flight import Flight
from examples.flights.topology import AIRCRAFT_QUEUE, SCHEDULED
from relmsg import Inbox, Retry

metadata = MetaData()
aircraft = Table(
    "aircraft",
    metadata,
    Column("tailnum", Text, primary_key=True),
    Column("flights", Integer, nullable=False),
    Column("miles", Integer, nullable=False),
    Column("last_departure", TIMESTAMP(timezone=True), nullable=False),
)

_first = insert(aircraft)
# flights and miles are wrong as soon as a message takes effect twice or never. last_departure is simply overwritten:
# it is wrong as soon as two messages about one aircraft change places.
count_flight = _first.on_conflict_do_update(
    index_elements=[aircraft.c.tailnum],
    set_={
        "flights": aircraft.c.flights + 1,
        "miles": aircraft.c.miles + _first.excluded.miles,
        "last_departure": _first.excluded.last_departure,
    },
)

engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"], pool_size=10)
inbox = Inbox("aircraft", async_sessionmaker(engine))


class FlightCancelled(Exception):
    """This flight never left. Trying again changes nothing: a person has to look at it."""


@inbox.handler(SCHEDULED, queue=AIRCRAFT_QUEUE, retry=Retry(never=(FlightCancelled,)))
async def departed(flight: Flight, session: AsyncSession) -> None:
    """Count a flight for its aircraft; one that names no aircraft counts for none."""
    if flight.is_cancelled:
        raise FlightCancelled(f"{flight} was cancelled")
    if flight.tailnum is None:
        return
    await session.execute(
        count_flight,
        {
            "tailnum": flight.tailnum,
            "flights": 1,
            "miles": flight.distance,
            "last_departure": flight.departed_at,
        },
    )
