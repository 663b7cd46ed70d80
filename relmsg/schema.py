"""The tables, defined once. The migrations must add up to this; a test holds them equal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import (
    DDL,
    TIMESTAMP,
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    Identity,
    Index,
    Integer,
    Interval,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, UUID

SLOTS = 64
DEFAULT_SCHEMA = "relmsg"

# A relay's rows live for milliseconds, so the default autovacuum (20 % of the table) would come far too late.
CHURN = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_cost_delay": "0",
}


@dataclass(frozen=True, slots=True)
class Tables:
    """relmsg's tables in one database schema."""

    metadata: MetaData
    outbox_message: Table
    outbox_slot: Table
    outbox_relay: Table
    inbox_message: Table
    inbox_attempt: Table
    inbox_window: Table
    half_message: Table


@lru_cache
def tables(schema: str = DEFAULT_SCHEMA) -> Tables:
    """relmsg's tables in the schema of that name. Equal names give the same objects."""
    metadata = MetaData(schema=schema)
    return Tables(
        metadata=metadata,
        outbox_message=_outbox_message(metadata),
        outbox_slot=_outbox_slot(metadata),
        outbox_relay=_outbox_relay(metadata),
        inbox_message=_inbox_message(metadata),
        inbox_attempt=_inbox_attempt(metadata),
        inbox_window=_inbox_window(metadata),
        half_message=_half_message(metadata),
    )


def quoted(schema: str, table: str) -> str:
    """``"schema"."table"`` as it may stand in SQL, whatever characters the schema's name has."""
    return f'"{schema.replace(chr(34), chr(34) * 2)}".{table}'


def _time(name: str, *, default: str | None = None, nullable: bool = True) -> Column[object]:
    return Column(name, TIMESTAMP(timezone=True), server_default=text(default) if default else None, nullable=nullable)


def _storage(table: Table) -> None:
    """Storage options by ALTER TABLE after CREATE TABLE: the argument postgresql_with is unknown to SQLAlchemy 2.0."""
    options = ", ".join(f"{name} = {value}" for name, value in table.info["storage_options"].items())
    event.listen(table, "after_create", DDL(f"ALTER TABLE %(fullname)s SET ({options})"))  # type: ignore[no-untyped-call]


def _outbox_message(metadata: MetaData) -> Table:
    """A row is here until the broker has confirmed it.

    Every column but exchange, routing_key and body has a default, so that a plain INSERT from any language publishes.
    ``occurred_at`` is the AMQP timestamp where the publisher gave one of its own; age is always that of ``created_at``.
    The identity has no cache: ids of one session grow in the order of its inserts.
    """
    table = Table(
        "outbox_message",
        metadata,
        Column("id", BigInteger, Identity(always=True, cache=1), primary_key=True),
        Column(
            "slot",
            SmallInteger,
            Computed(f"(hashtext(COALESCE(ordering_key, message_id::text)) & {SLOTS - 1})::smallint", persisted=True),
            nullable=False,
        ),
        Column("message_id", UUID(as_uuid=True), server_default=text("gen_random_uuid()"), nullable=False),
        Column("type", Text),
        Column("source", Text),
        Column("exchange", Text, nullable=False),
        Column("routing_key", Text, nullable=False),
        Column("ordering_key", Text),
        Column("headers", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
        Column("content_type", Text),
        Column("content_encoding", Text),
        Column("correlation_id", Text),
        Column("reply_to", Text),
        Column("body", BYTEA, nullable=False),
        _time("created_at", default="clock_timestamp()", nullable=False),
        _time("occurred_at"),
        _time("expires_at"),
        Column("attempts", Integer, server_default=text("0"), nullable=False),
        Column("last_error", Text),
        _time("parked_at"),
        info={"storage_options": CHURN},
    )
    _storage(table)
    waiting = table.c.parked_at.is_(None)
    Index("outbox_message_slot_id", table.c.slot, table.c.id, postgresql_where=waiting)
    Index(
        "outbox_message_key_id",
        table.c.ordering_key,
        table.c.id,
        postgresql_where=waiting & table.c.ordering_key.is_not(None),
    )
    Index("outbox_message_parked", table.c.id, postgresql_where=table.c.parked_at.is_not(None))
    return table


def _outbox_slot(metadata: MetaData) -> Table:
    """Who may send the rows of a slot, until when. Always 64 rows."""
    return Table(
        "outbox_slot",
        metadata,
        Column("slot", SmallInteger, primary_key=True, autoincrement=False),
        Column("owner", Text),
        Column("epoch", BigInteger, server_default=text("0"), nullable=False),
        _time("expires_at"),
    )


def _outbox_relay(metadata: MetaData) -> Table:
    """The relays that are alive, so that each can know its fair share of the slots."""
    return Table(
        "outbox_relay",
        metadata,
        Column("owner", Text, primary_key=True),
        _time("started_at", default="clock_timestamp()", nullable=False),
        _time("expires_at", nullable=False),
    )


def _inbox_message(metadata: MetaData) -> Table:
    """Which messages have taken effect, per consumer. Ids are text: messages come from anyone."""
    table = Table(
        "inbox_message",
        metadata,
        Column("consumer", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("message_id", Text, nullable=False),
        _time("handled_at", default="now()", nullable=False),
        PrimaryKeyConstraint("consumer", "source", "message_id"),
    )
    Index("inbox_message_handled_at", table.c.consumer, table.c.handled_at)
    return table


def _inbox_attempt(metadata: MetaData) -> Table:
    """How often a redelivered message was begun and not finished: a row is written before such a handler runs.

    First deliveries write none, so the healthy path pays nothing.
    """
    table = Table(
        "inbox_attempt",
        metadata,
        Column("consumer", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("message_id", Text, nullable=False),
        Column("starts", Integer, server_default=text("1"), nullable=False),
        _time("first_at", default="now()", nullable=False),
        PrimaryKeyConstraint("consumer", "source", "message_id"),
        info={"storage_options": CHURN},
    )
    _storage(table)
    return table


def _inbox_window(metadata: MetaData) -> Table:
    """How long each consumer remembers what it has handled (``keeps``; null is for ever), and what it has forgotten:
    messages handled before ``pruned_before`` may be gone.
    """
    return Table(
        "inbox_window",
        metadata,
        Column("consumer", Text, primary_key=True),
        Column("keeps", Interval),
        _time("pruned_before"),
        _time("pruned_at"),
    )


def _half_message(metadata: MetaData) -> Table:
    """Half messages: stored by the coordinator, invisible to consumers until they are committed.

    A row without ``prepared_at`` is a decision that overtook its prepare, and has no message yet. ``checks`` counts the
    checks that a member of the group has received; ``check_sent`` and ``check_received`` are the numbers of the last
    one that was sent and of the last one that was received. ``expires_in`` is counted from the commit.
    """
    table = Table(
        "half_message",
        metadata,
        Column("half_id", UUID(as_uuid=True), primary_key=True),
        Column("producer_group", Text, nullable=False),
        Column("user_id", Text),
        Column("state", Text, nullable=False),
        Column("type", Text),
        Column("source", Text),
        Column("exchange", Text, server_default=text("''"), nullable=False),
        Column("routing_key", Text, server_default=text("''"), nullable=False),
        Column("ordering_key", Text),
        Column("headers", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
        Column("content_type", Text),
        Column("content_encoding", Text),
        Column("correlation_id", Text),
        Column("reply_to", Text),
        Column("body", BYTEA, server_default=text("''::bytea"), nullable=False),
        _time("occurred_at"),
        Column("expires_in", Interval),
        _time("created_at", default="clock_timestamp()", nullable=False),
        _time("prepared_at"),
        Column("check_every", Interval, server_default=text("'30 seconds'::interval"), nullable=False),
        Column("max_checks", Integer, server_default=text("15"), nullable=False),
        Column("checks", Integer, server_default=text("0"), nullable=False),
        Column("check_sent", Integer, server_default=text("0"), nullable=False),
        Column("check_received", Integer, server_default=text("0"), nullable=False),
        _time("next_check_at"),
        Column("last_answer", Text),
        _time("last_answer_at"),
        Column("decided_by", Text),
        _time("decided_at"),
        CheckConstraint("state IN ('PREPARED', 'COMMITTED', 'ROLLED_BACK', 'PARKED')", name="half_message_state"),
        info={"storage_options": CHURN},
    )
    _storage(table)
    Index("half_message_due", table.c.next_check_at, postgresql_where=table.c.state == "PREPARED")
    Index("half_message_parked", table.c.half_id, postgresql_where=table.c.state == "PARKED")
    Index("half_message_decided", table.c.decided_at, postgresql_where=table.c.decided_at.is_not(None))
    return table
