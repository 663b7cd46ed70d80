"""How long each consumer's inbox remembers, and an index by which it is pruned.

Revision 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
oldest_compatible = "0002"
alters = []
concurrent_indexes = [("inbox_message_handled_at", "inbox_message", ["consumer", "handled_at"], None)]


def moment(name: str) -> sa.Column:
    return sa.Column(name, sa.TIMESTAMP(timezone=True))


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.create_table(
        "inbox_window",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("keeps", sa.Interval),
        moment("pruned_before"),
        moment("pruned_at"),
        schema=schema,
    )
