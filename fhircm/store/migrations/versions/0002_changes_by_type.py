"""Changes of one type in order, for its history and for pages that show one moment."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.create_index("change_type", "change", ["type", "tx", "number"])


def downgrade():
    op.drop_index("change_type", "change")
