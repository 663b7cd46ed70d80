"""Half messages.

Revision 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
oldest_compatible = "0002"

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


def count(name: str, default: int) -> sa.Column:
    return sa.Column(name, sa.Integer, server_default=sa.text(str(default)), nullable=False)


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    halves = op.create_table(
        "half_message",
        sa.Column("half_id", postgresql.UUID, primary_key=True),
        sa.Column("producer_group", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("type", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("exchange", sa.Text, server_default=sa.text("''"), nullable=False),
        sa.Column("routing_key", sa.Text, server_default=sa.text("''"), nullable=False),
        sa.Column("ordering_key", sa.Text),
        sa.Column("headers", postgresql.JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("content_type", sa.Text),
        sa.Column("content_encoding", sa.Text),
        sa.Column("correlation_id", sa.Text),
        sa.Column("reply_to", sa.Text),
        sa.Column("body", postgresql.BYTEA, server_default=sa.text("''::bytea"), nullable=False),
        moment("occurred_at"),
        sa.Column("expires_in", sa.Interval),
        moment("created_at", "clock_timestamp()", nullable=False),
        moment("prepared_at"),
        sa.Column("check_every", sa.Interval, server_default=sa.text("'30 seconds'::interval"), nullable=False),
        count("max_checks", 15),
        count("checks", 0),
        count("check_sent", 0),
        count("check_received", 0),
        moment("next_check_at"),
        sa.Column("last_answer", sa.Text),
        moment("last_answer_at"),
        sa.Column("decided_by", sa.Text),
        moment("decided_at"),
        sa.CheckConstraint("state IN ('PREPARED', 'COMMITTED', 'ROLLED_BACK', 'PARKED')", name="half_message_state"),
        schema=schema,
    )
    op.execute(CHURN.against(halves))
    for name, column, predicate in (
        ("half_message_due", "next_check_at", "state = 'PREPARED'"),
        ("half_message_parked", "half_id", "state = 'PARKED'"),
        ("half_message_decided", "decided_at", "decided_at IS NOT NULL"),
    ):
        op.create_index(name, "half_message", [column], schema=schema, postgresql_where=sa.text(predicate))
