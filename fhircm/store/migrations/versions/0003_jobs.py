"""What jobs write and keep: the files of an export, and what it is about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_PLAIN = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade():
    op.create_table(
        "job_part",
        sa.Column("job", _PLAIN, nullable=False),
        sa.Column("file", sa.Integer(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job", "file", "part"),
    )
    op.create_table(
        "job_target",
        sa.Column("job", _PLAIN, nullable=False),
        sa.Column("type", _PLAIN, nullable=False),
        sa.Column("id", _PLAIN, nullable=False),
        sa.PrimaryKeyConstraint("job", "type", "id"),
        sqlite_with_rowid=False,
    )


def downgrade():
    op.drop_table("job_target")
    op.drop_table("job_part")
