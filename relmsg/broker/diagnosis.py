"""The headers of an error copy: what came with the message, and why it could not be handled, within 16 KiB."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from relmsg.broker import error_headers as names
from relmsg.broker.delivery import Delivery
from relmsg.broker.error_text import text_for, trace_for
from relmsg.broker.headers import MAX_BYTES, encoded_size

ORIGINAL_EXPIRATION = "relmsg-original-expiration"
TRACE_BYTES = 4 * 1024
TEXT_BYTES = 1024
LISTED_BYTES = 512
ORIGINALS_BYTES = 4 * 1024  # all short properties of a message, and their names
# In a published message RabbitMQ reads these as more routing keys: the error copy would go to other queues too.
ROUTING = ("CC", "BCC")


class Failure(Protocol):
    """Why a message could not be handled, under a short name, and after how many attempts."""

    @property
    def error(self) -> BaseException:
        """What went wrong."""
        ...

    @property
    def reason(self) -> str:
        """The kind of failure in one word, such as ``undecodable``."""
        ...

    @property
    def attempts(self) -> int:
        """How often it was tried; 0 where that could not even begin."""
        ...


def error_headers(
    delivery: Delivery, failed: Failure, consumer: str, failed_at: datetime, most: int = MAX_BYTES
) -> dict[str, Any]:
    """All headers of the error copy, at most so many bytes; fewer than 2048 cannot be kept to.

    The diagnosis of an earlier failure is replaced. What AMQP cannot carry is made sendable. The
    stack trace gets what room is left, at most 4 KiB of its end. Where even without it the headers would take more than
    ``most``, the largest of the incoming ones are left out; ``relmsg-sanitised-headers`` names all that has changed.
    """
    touched = list(delivery.altered)
    came = _sendable(names.strip(delivery.message.headers), touched)
    diagnosis = _diagnosis(delivery, failed, consumer, failed_at, min(TEXT_BYTES, most // 16))
    listed = min(LISTED_BYTES, most // 8)
    if delivery.originals and most > 2 * ORIGINALS_BYTES:
        diagnosis[names.ORIGINAL_BYTES] = dict(delivery.originals)
    # Room for the list itself is set aside: dropping a header makes it longer.
    budget = most - encoded_size(diagnosis) - listed - len(names.SANITISED) - 8
    for name in sorted(came, key=lambda name: encoded_size({name: came[name]}), reverse=True):
        if encoded_size(came) <= budget:
            break
        del came[name]
        touched.append(f"{name} (dropped)")
    room = min(TRACE_BYTES, budget - encoded_size(came) - len(names.EXCEPTION_STACKTRACE) - 8)
    trace = _end(trace_for(delivery.message.headers, failed.error), max(0, room))
    headers = {**came, **diagnosis, names.EXCEPTION_STACKTRACE: trace}
    if touched:
        headers[names.SANITISED] = _start(", ".join(sorted(set(touched))), listed)
    return headers


def cut_text(text: str, size: int) -> str:
    """The beginning of a text, at most so many bytes."""
    return _start(text, size)


def _diagnosis(
    delivery: Delivery, failed: Failure, consumer: str, failed_at: datetime, text_bytes: int
) -> dict[str, Any]:
    kind = type(failed.error)
    diagnosis: dict[str, Any] = {
        names.EXCEPTION_MESSAGE: _start(text_for(delivery.message.headers, failed.error), text_bytes),
        names.ERROR_TYPE: _start(f"{kind.__module__}.{kind.__qualname__}", text_bytes),
        names.REASON: failed.reason,
        names.ATTEMPTS: failed.attempts,
        names.FAILED_AT: failed_at.isoformat(timespec="milliseconds"),
        names.ORIGINAL_EXCHANGE: delivery.message.exchange,
        names.ORIGINAL_ROUTING_KEY: delivery.message.routing_key,
        names.ORIGINAL_QUEUE: delivery.queue,
        names.CONSUMER: _start(consumer, text_bytes),
    }
    if delivery.expiration is not None:
        diagnosis[ORIGINAL_EXPIRATION] = delivery.expiration
    if delivery.user_id is not None:
        diagnosis[names.ORIGINAL_USER_ID] = _start(delivery.user_id, text_bytes)
    return diagnosis


def _sendable(headers: Mapping[str, Any], touched: list[str]) -> dict[str, Any]:
    """The headers as they can be sent again; names what had to be changed or left out."""
    result: dict[str, Any] = {}
    for name, value in headers.items():
        if name in ROUTING:
            touched.append(f"{name} (dropped)")
            continue
        try:
            encoded_size({name: value})
            result[name] = value
        except Exception:  # noqa: BLE001 - the encoder raises five families of errors
            result[name] = _start(str(value), TEXT_BYTES)
            touched.append(name)
    return result


def _start(text: str, size: int) -> str:
    raw = _plain(text).encode()
    return raw.decode() if len(raw) <= size else raw[: size - 3].decode(errors="ignore") + "…"


def _end(text: str, size: int) -> str:
    """The last bytes of a text: a stack trace ends with what happened."""
    raw = _plain(text).encode()
    if len(raw) <= size:
        return raw.decode()
    return "…" + raw[len(raw) - size + 3 :].decode(errors="ignore") if size > 3 else ""


def _plain(text: str) -> str:
    """The text without what UTF-8 or PostgreSQL cannot hold."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
