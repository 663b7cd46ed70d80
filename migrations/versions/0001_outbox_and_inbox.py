"""The outbox with its slots and relays, the inbox with its attempts.

Revision 0001, after nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
oldest_compatible = "0001"

# Not the table's argument postgresql_with: SQLAlchemy 2.0 does not know it.
CHURN = sa.DDL(
    "ALTER TABLE %(fullname)s SET (autovacuum_vacuum_scale_factor = 0.01, "
    "autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)"
)


def moment(name: str, default: str | None = None, nullable: bool = True) -> sa.Column:
    return sa.Column(
        name,
        sa.TIMESTAMP(timezone=True),
        server_default=sa.text(default) if default else None,
        nullable=nullable,
    )


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    messages = op.create_table(
        "outbox_message",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True, cache=1), primary_key=True),
        sa.Column(
            "slot",
            sa.SmallInteger,
            sa.Computed("(hashtext(COALESCE(ordering_key, message_id::text)) & 63)::smallint", persisted=True),
            nullable=False,
        ),
        sa.Column("message_id", postgresql.UUID, server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("type", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("exchange", sa.Text, nullable=False),
        sa.Column("routing_key", sa.Text, nullable=False),
        sa.Column("ordering_key", sa.Text),
        sa.Column("headers", postgresql.JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("content_type", sa.Text),
        sa.Column("content_encoding", sa.Text),
        sa.Column("correlation_id", sa.Text),
        sa.Column("reply_to", sa.Text),
        sa.Column("body", postgresql.BYTEA, nullable=False),
        moment("created_at", "clock_timestamp()", nullable=False),
        moment("occurred_at"),
        moment("expires_at"),
        sa.Column("attempts", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text),
        moment("parked_at"),
        schema=schema,
    )
    op.execute(CHURN.against(messages))
    for name, columns, predicate in (
        ("outbox_message_slot_id", ["slot", "id"], "parked_at IS NULL"),
        ("outbox_message_key_id", ["ordering_key", "id"], "parked_at IS NULL AND ordering_key IS NOT NULL"),
        ("outbox_message_parked", ["id"], "parked_at IS NOT NULL"),
    ):
        op.create_index(name, "outbox_message", columns, schema=schema, postgresql_where=sa.text(predicate))

    slots = op.create_table(
        "outbox_slot",
        sa.Column("slot", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.Text),
        sa.Column("epoch", sa.BigInteger, server_default=sa.text("0"), nullable=False),
        moment("expires_at"),
        schema=schema,
    )
    # Literal, because plain SQL (`relmsg db sql`) has no parameters.
    op.execute(sa.insert(slots).from_select(["slot"], sa.select(sa.literal_column("generate_series(0, 63)"))))
    op.create_table(
        "outbox_relay",
        sa.Column("owner", sa.Text, primary_key=True),
        moment("started_at", "clock_timestamp()", nullable=False),
        moment("expires_at", nullable=False),
        schema=schema,
    )

    op.create_table(
        "inbox_message",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        moment("handled_at", "now()", nullable=False),
        sa.PrimaryKeyConstraint("consumer", "source", "message_id"),
        schema=schema,
    )
    attempts = op.create_table(
        "inbox_attempt",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("starts", sa.Integer, server_default=sa.text("1"), nullable=False),
        moment("first_at", "now()", nullable=False),
        sa.PrimaryKeyConstraint("consumer", "source", "message_id"),
        schema=schema,
    )
    op.execute(CHURN.against(attempts))
