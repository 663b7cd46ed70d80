"""The headers with which a message waits in an error queue, and how they come off again.

The first four names are Spring AMQP's (``RepublishMessageRecoverer``), so that tools made for them work here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXCEPTION_MESSAGE = "x-exception-message"
EXCEPTION_STACKTRACE = "x-exception-stacktrace"
ORIGINAL_EXCHANGE = "x-original-exchange"
ORIGINAL_ROUTING_KEY = "x-original-routingKey"
REASON = "relmsg-error-reason"
ERROR_TYPE = "relmsg-error-type"
ATTEMPTS = "relmsg-error-attempts"
FAILED_AT = "relmsg-failed-at"
ORIGINAL_QUEUE = "relmsg-original-queue"
ORIGINAL_EXPIRATION = "relmsg-original-expiration"
ORIGINAL_USER_ID = "relmsg-original-user-id"
CONSUMER = "relmsg-consumer"
SANITISED = "relmsg-sanitised-headers"
ORIGINAL_BYTES = "relmsg-original-bytes"
BODY_SIZE = "relmsg-body-size"
BODY_SHA256 = "relmsg-body-sha256"

OURS = frozenset(
    {
        EXCEPTION_MESSAGE,
        EXCEPTION_STACKTRACE,
        ORIGINAL_EXCHANGE,
        ORIGINAL_ROUTING_KEY,
        REASON,
        ERROR_TYPE,
        ATTEMPTS,
        FAILED_AT,
        ORIGINAL_QUEUE,
        ORIGINAL_EXPIRATION,
        ORIGINAL_USER_ID,
        CONSUMER,
        SANITISED,
        ORIGINAL_BYTES,
        BODY_SIZE,
        BODY_SHA256,
    }
)
BROKERS = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
BROKERS_PREFIXES = ("x-first-death-", "x-last-death-")


def strip(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headers without the diagnosis of a failure: neither relmsg's, nor Spring's, nor the broker's own.

    Left in, they would grow with every round through an error queue until no frame can carry them (reliability C16),
    and RabbitMQ would read an old ``x-death`` as its own.
    """
    return {
        name: value
        for name, value in (headers or {}).items()
        if name not in OURS and name not in BROKERS and not name.startswith(BROKERS_PREFIXES)
    }
