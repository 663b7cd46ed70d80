"""The log of a process: lines on stderr, as text or as JSON."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any

from relmsg.arguments import shown
from relmsg.cli.escape import escaped, escaped_json, escaped_trace
from relmsg.exceptions import trace_of

# Its lines are left out: at DEBUG it logs bodies, and its warnings say in tracebacks what relmsg says in a sentence.
AMQP_LIBRARY = ("aiormq", "aio_pika", "pamqp")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_to_stderr(level: str = "info", form: str = "text") -> None:
    """Log one event a line to stderr; an exception's trace follows it as text, and is a member of it as JSON.

    Lines on stdout leave at once as well: a pipe or a file would otherwise get them when the process ends.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in AMQP_LIBRARY:
        logging.getLogger(library).setLevel(logging.CRITICAL)


class _Text(logging.Formatter):
    """One line an event, and behind it the trace of its exception, indented. Both are escaped: they may hold the words
    of whoever sent a message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message = _message(record)
        record.asctime = self.formatTime(record)
        parts = [escaped(self.formatMessage(record))]
        if record.exc_info:
            parts.append(escaped_trace(self.formatException(record.exc_info)))
        if record.stack_info:
            parts.append(escaped_trace(record.stack_info))
        return "\n".join(parts)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return trace_of(ei[1]) if ei[1] is not None else ""


class _Json(_Text):
    """One JSON object a line: time, level, logger, message, exception, and what was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in _OWN}
        try:
            line = _json(extra | told)
        except Exception:  # noqa: BLE001 - numbers, keys, depth, or code of whoever gave it: of many families
            line = _json({name: shown(value) for name, value in extra.items()} | told)
        return escaped_json(line)


def _json(told: Mapping[str, Any]) -> str:
    return json.dumps(told, default=str, ensure_ascii=False, allow_nan=False)


def _message(record: logging.LogRecord) -> str:
    """The event's text; where its arguments do not fit it, or raise, the format and each argument, as far as they can
    be shown. A formatter that raises would have logging print all of it to the terminal as it is."""
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - code of whoever logs
        given = record.args if isinstance(record.args, tuple) else (record.args,)
        return " ".join(map(shown, (record.msg, *given)))


def leave_out_amqp_library(loop: asyncio.AbstractEventLoop) -> None:
    """Log what asyncio tells of tasks, futures and callbacks that failed unseen, except for the AMQP library's own.

    It leaves some behind with each connection that is lost, and relmsg has told of that already. Everything else is the
    user's to see, such as a ``create_task(…)`` in a handler whose exception nobody awaited.
    """

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not _is_of_amqp_library(context):
            loop.default_exception_handler(context)

    loop.set_exception_handler(report)


def _is_of_amqp_library(context: dict[str, Any]) -> bool:
    task = context.get("task") or context.get("future")
    if isinstance(task, asyncio.Task):
        coroutine: Any = task.get_coro()
        return _is_its_code(getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None))
    error = context.get("exception")
    if task is not None:  # a bare future: only what it holds says whose it was
        return type(error).__module__.partition(".")[0] in AMQP_LIBRARY
    return error is not None and _is_its_code(_where_raised(error))


def _where_raised(error: BaseException) -> CodeType | None:
    trace, frame = error.__traceback__, None
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    return frame.f_code if isinstance(frame, FrameType) else None


def _is_its_code(code: CodeType | None) -> bool:
    if code is None:
        return False
    parts = PurePath(code.co_filename).parts
    return any(library in parts for library in AMQP_LIBRARY)
