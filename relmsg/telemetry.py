"""Tracing context carried with a message. The Prometheus metrics stand with the process they describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context

CARRIED = ("traceparent", "tracestate")

_tracer = trace.get_tracer("relmsg")


def trace_headers() -> dict[str, str]:
    """The W3C trace context of the current span (``traceparent``, ``tracestate``); empty outside of any span."""
    if not trace.get_current_span().get_span_context().is_valid:
        return {}  # most services most of the time; injecting nothing costs four times as much as asking
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: value for name, value in carrier.items() if name in CARRIED}


@contextmanager
def span(
    name: str, attributes: Mapping[str, str | int] | None = None, *, continues: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Do the work of this block under a span of its own. Where the service has set up no OpenTelemetry SDK, nothing is
    recorded, and a trace that came from elsewhere goes on all the same.

    ``continues``: headers of a received message, whose trace it belongs to; without a trace context in them it begins a
    new one. Otherwise it is a child of the current span.
    """
    parent = None if continues is None else _context_of(continues)
    with _tracer.start_as_current_span(name, context=parent, attributes=attributes):
        yield


def _context_of(headers: Mapping[str, Any]) -> Context:
    # From an empty context: what reads a socket runs in that of whoever opened it, a start-up span perhaps.
    carried = {name: headers[name] for name in CARRIED if isinstance(headers.get(name), str)}
    return propagate.extract(carried, context=Context())
