"""The INSERT of the publishing side: what a sealed message is in the table, written in one statement for any number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Connection, DateTime, Insert, Interval, bindparam, func, literal

from relmsg.broker.envelope import Envelope
from relmsg.outbox.direct import Direct, Transaction
from relmsg.schema import quoted, tables

MOST_BYTES = 256 * 1024 * 1024  # of bodies in one statement: PostgreSQL takes less than 1 GiB of parameters


class SealedRow(NamedTuple):
    """A message that is known to be sendable, as the columns that the publisher writes; the others have defaults."""

    message_id: UUID
    type: str | None
    source: str | None
    exchange: str
    routing_key: str
    ordering_key: str | None
    headers: str
    content_type: str | None
    content_encoding: str | None
    correlation_id: str | None
    reply_to: str | None
    body: bytes
    occurred_at: datetime | None
    expires_in: timedelta | None


def sealed_row(message_id: UUID, envelope: Envelope) -> SealedRow:
    """The row of an envelope."""
    expiration = envelope.expiration_ms
    return SealedRow(
        message_id,
        envelope.type,
        envelope.source,
        envelope.exchange,
        envelope.routing_key,
        envelope.ordering_key,
        _json(envelope.headers) if envelope.headers else "{}",
        envelope.content_type,
        envelope.content_encoding,
        envelope.correlation_id,
        envelope.reply_to,
        envelope.body,
        envelope.timestamp,
        None if expiration is None else timedelta(milliseconds=expiration),
    )


NAMES = SealedRow._fields
TYPES = {"message_id": "uuid", "body": "bytea", "occurred_at": "timestamptz", "expires_in": "interval"}
# All types, functions and operators by their schema: this runs in the user's session, under the user's search_path
# (docs/decisions/0120).
PLACES = [f"${place}::pg_catalog.{TYPES.get(name, 'text')}" for place, name in enumerate(NAMES, 1)]
# Headers travel as text and are cast by the server: a codec that the user's engine has for jsonb would encode them
# once more.
WRITTEN = {"headers": "{}::pg_catalog.jsonb", "expires_in": "pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) {}"}
TARGET = ", ".join("expires_at" if name == "expires_in" else name for name in NAMES)


class Insertion:
    """Writes sealed rows into the outbox of one schema, in the caller's transaction and in the order of the rows.

    One round trip for any number of rows, unless their bodies take more than 256 MiB together. Through asyncpg the
    statement goes to the driver as it stands; through another driver it is SQLAlchemy's own INSERT, with the same
    effect.
    """

    def __init__(self, schema: str) -> None:
        self._into = f"INSERT INTO {quoted(schema, 'outbox_message')} ({TARGET})"
        self._one = f"{self._into} VALUES ({_written(PLACES)})"
        self._many: dict[frozenset[int], str] = {}
        self._table = tables(schema).outbox_message
        self._core = self._table.insert().values(expires_at=_after(bindparam("expires_in", type_=Interval())))

    @staticmethod
    @lru_cache
    def of(schema: str) -> Insertion:
        """The insertion into this schema: built once, for building it costs more than the row does."""
        return Insertion(schema)

    async def write(self, tx: Transaction, connection: Connection, rows: Sequence[SealedRow]) -> None:
        """Write the rows, on this connection of ``tx``.

        :raises DBAPIError: SQLAlchemy's errors; the transaction can then only be rolled back.
        """
        if connection.dialect.driver == "asyncpg" and Direct.begun(connection):
            for sql, args in self._statements(rows):
                await Direct.execute(tx, connection, sql, args)
        else:
            await tx.run_sync(lambda _: self.write_sync(connection, rows))

    def write_sync(self, connection: Connection, rows: Sequence[SealedRow]) -> None:
        """The same where SQLAlchemy runs synchronous code: in ``run_sync``, and inside of its events."""
        if connection.dialect.driver == "asyncpg":
            for sql, args in self._statements(rows):
                Direct.execute_sync(connection, sql, args)
        else:
            connection.execute(self._core, [_as_columns(row) for row in rows])

    def statement(self, row: SealedRow) -> Insert:
        """The same INSERT as a Core statement."""
        values = _as_columns(row)
        expires_in = values.pop("expires_in")
        return self._table.insert().values(
            **values, expires_at=None if expires_in is None else _after(literal(expires_in, Interval()))
        )

    def _statements(self, rows: Sequence[SealedRow]) -> Iterator[tuple[str, Sequence[Any]]]:
        if len(rows) == 1:
            yield self._one, rows[0]
            return
        for part in _parts(rows):
            columns = list(zip(*part, strict=True))
            varying = frozenset(
                place for place, column in enumerate(columns) if place == 0 or column.count(column[0]) < len(column)
            )
            if varying not in self._many:
                self._many[varying] = self._arrays(varying)
            yield (
                self._many[varying],
                [list(column) if place in varying else column[0] for place, column in enumerate(columns)],
            )

    def _arrays(self, varying: frozenset[int]) -> str:
        """Any number of rows in one statement. Most columns are alike in all rows of a transaction: those go once, the
        others as arrays. Ids are drawn after the sort, so their order is that of the arrays.
        """
        sources = [NAMES[place] if place in varying else PLACES[place] for place in range(len(NAMES))]
        # unnest(a, b) is not found by its schema; one by one it is.
        arrays = ", ".join(f"pg_catalog.unnest({PLACES[place]}[])" for place in sorted(varying))
        names = ", ".join(NAMES[place] for place in sorted(varying))
        return (
            f"{self._into} SELECT {_written(sources)} "  # noqa: S608 - all names are ours or quoted
            f"FROM ROWS FROM ({arrays}) WITH ORDINALITY AS m ({names}, place) ORDER BY place"
        )


def _after(span: ColumnElement[timedelta]) -> ColumnElement[datetime]:
    now = func.pg_catalog.clock_timestamp(type_=DateTime(timezone=True))
    return now.op("OPERATOR(pg_catalog.+)", return_type=DateTime(timezone=True))(span)


def _json(headers: Mapping[str, Any]) -> str:
    try:
        return msgspec.json.encode(headers).decode()
    except TypeError:  # a subclass of str, int or dict
        return json.dumps(headers)


def _written(sources: Sequence[str]) -> str:
    return ", ".join(WRITTEN.get(name, "{}").format(source) for source, name in zip(sources, NAMES, strict=True))


def _as_columns(row: SealedRow) -> dict[str, Any]:
    return {**row._asdict(), "headers": json.loads(row.headers)}


def _parts(rows: Sequence[SealedRow]) -> Iterator[Sequence[SealedRow]]:
    start = size = 0
    for position, row in enumerate(rows):
        size += len(row.body)
        if size > MOST_BYTES and position > start:
            yield rows[start:position]
            start, size = position, len(row.body)
    yield rows[start:]
