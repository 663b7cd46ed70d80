"""A flight: the event that one service publishes and the other handles, and the file that it comes from."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from uuid import UUID

from relmsg import Message

DATA = Path(__file__).parent / "nyc-departures-2013-01.csv.gz"


@dataclass(frozen=True, slots=True)
class Flight:
    """One scheduled departure. ``tailnum`` names the aircraft; a flight without ``dep_time`` was cancelled."""

    time_hour: datetime
    carrier: str
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    sched_dep_time: int
    dep_time: int | None
    dep_delay: int | None
    distance: int

    @property
    def message_id(self) -> UUID:
        """The same flight is always the same message: a publisher that starts again publishes no second one."""
        return Message.id_for(f"{self.time_hour:%Y-%m-%dT%H} {self.carrier}{self.flight} {self.origin}")

    @property
    def is_cancelled(self) -> bool:
        return self.dep_time is None

    @property
    def departed_at(self) -> datetime | None:
        """The moment of departure, in UTC: the schedule and the delay; None for a flight that never left."""
        if self.dep_delay is None:
            return None
        return self.time_hour + timedelta(minutes=self.sched_dep_time % 100 + self.dep_delay)

    def __str__(self) -> str:
        return f"{self.carrier}{self.flight} from {self.origin} to {self.dest} at {self.time_hour:%Y-%m-%d %H:%M}Z"


def read(limit: int | None = None) -> list[Flight]:
    """The flights of the file, by the hour of their schedule; within an hour in the file's order."""
    with gzip.open(DATA, "rt", newline="") as file:
        flights = [_flight(row) for row in csv.DictReader(file)]
    return list(islice(sorted(flights, key=lambda flight: flight.time_hour), limit))


def by_hour(flights: list[Flight]) -> Iterator[tuple[datetime, list[Flight]]]:
    """The flights of each hour, in the order given."""
    for hour, of_hour in groupby(flights, key=lambda flight: flight.time_hour):
        yield hour, list(of_hour)


def _flight(row: dict[str, str]) -> Flight:
    value = {name: None if text == "NA" else text for name, text in row.items()}
    return Flight(
        time_hour=datetime.fromisoformat(row["time_hour"]),
        carrier=row["carrier"],
        flight=int(row["flight"]),
        tailnum=value["tailnum"],
        origin=row["origin"],
        dest=row["dest"],
        sched_dep_time=int(row["sched_dep_time"]),
        dep_time=None if value["dep_time"] is None else int(value["dep_time"]),
        dep_delay=None if value["dep_delay"] is None else int(value["dep_delay"]),
        distance=int(row["distance"]),
    )
