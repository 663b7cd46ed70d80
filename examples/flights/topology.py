"""What the two services share in the broker: `relmsg topology declare examples.flights.topology:topology`."""

from __future__ import annotations

from relmsg import Binding, Exchange, Queue, Topology

FLIGHTS = "flights"
AIRCRAFT_QUEUE = "aircraft.flights"
SCHEDULED = "flight.scheduled"

# A quorum queue; its error queue, aircraft.flights.errors, comes along.
topology = Topology(
    exchanges=[Exchange(FLIGHTS)],
    queues=[Queue(AIRCRAFT_QUEUE, bindings=(Binding(FLIGHTS, routing_key=SCHEDULED),))],
)
