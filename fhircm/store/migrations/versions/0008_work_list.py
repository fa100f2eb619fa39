"""The lines of work lists, and the risk of patients: what is there already gets them by `fhircm reindex Task RiskAssessment`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_PLAIN = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade():
    op.create_table(
        "work_line",
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("list", _PLAIN, nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("patient", _PLAIN, nullable=False),
        sa.Column("status", _PLAIN, nullable=False),
        sa.Column("hidden", sa.BigInteger(), nullable=False),
        sa.Column("why", _PLAIN, nullable=False),
        sa.PrimaryKeyConstraint("list", "due", "priority", "resource_key"),
        sqlite_with_rowid=False,
    )
    op.create_index("work_line_priority", "work_line", ["list", "priority", "due", "resource_key"], unique=False)
    op.create_index("work_line_resource", "work_line", ["resource_key"], unique=False)
    op.create_table(
        "patient_risk",
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("patient", _PLAIN, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("patient", "at", "resource_key"),
        sqlite_with_rowid=False,
    )
    op.create_index("patient_risk_resource", "patient_risk", ["resource_key"], unique=False)


def downgrade():
    op.drop_table("patient_risk")
    op.drop_table("work_line")
