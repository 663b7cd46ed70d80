"""The service that knows the schedule: writes every flight down and tells of it, in one transaction an hour.

    RELMSG_DATABASE_URL=… python -m examples.flights.departures [--flights N]

It knows PostgreSQL only. That the broker or the relay is down does not concern it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import asdict

from sqlalchemy import TIMESTAMP, Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import UUID, insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.flights.flight import Flight, by_hour, read
from examples.flights.topology import FLIGHTS, SCHEDULED
from relmsg import Message, Outbox

metadata = MetaData()
flights = Table(
    "flights",
    metadata,
    Column("message_id", UUID(as_uuid=True), primary_key=True),
    Column("time_hour", TIMESTAMP(timezone=True), nullable=False),
    Column("carrier", Text, nullable=False),
    Column("flight", Integer, nullable=False),
    Column("tailnum", Text),
    Column("origin", Text, nullable=False),
    Column("dest", Text, nullable=False),
    Column("sched_dep_time", Integer, nullable=False),
    Column("dep_time", Integer),
    Column("dep_delay", Integer),
    Column("distance", Integer, nullable=False),
)

outbox = Outbox(source="departures")


async def write_hour(session: AsyncSession, of_hour: list[Flight]) -> None:
    """Write the flights of an hour and publish them, in the transaction of ``session``.

    Flights that are written already are passed by, rows and messages alike: after a crash the service starts again at
    the beginning of the file.
    """
    rows = [{"message_id": each.message_id, **asdict(each)} for each in of_hour]
    statement = insert(flights).on_conflict_do_nothing().returning(flights.c.message_id)
    new = set(await session.scalars(statement.values(rows)))
    await outbox.publish_many(session, [scheduled(each) for each in of_hour if each.message_id in new])


def scheduled(flight: Flight) -> Message:
    """The message; messages about one aircraft keep their order."""
    return Message(
        id=flight.message_id,
        type=SCHEDULED,
        body=flight,
        exchange=FLIGHTS,
        routing_key=SCHEDULED,
        ordering_key=flight.tailnum,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description="write flights down and publish them")
    parser.add_argument("--flights", type=int, metavar="N", help="only the first N")
    arguments = parser.parse_args()
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"])
    sessions = async_sessionmaker(engine)
    try:
        for _, of_hour in by_hour(read(arguments.flights)):
            async with sessions.begin() as session:
                await write_hour(session, of_hour)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
