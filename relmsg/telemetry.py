"""Tracing context carried with a message. The Prometheus metrics stand with the process they describe."""

from __future__ import annotations

from opentelemetry import propagate


def trace_headers() -> dict[str, str]:
    """The W3C trace context of the current span (``traceparent``, ``tracestate``); empty outside of any span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: value for name, value in carrier.items() if name in ("traceparent", "tracestate")}
