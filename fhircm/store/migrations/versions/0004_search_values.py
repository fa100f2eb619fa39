"""Composite parameters and places can be searched; what is stored already is found by them, and by comparable units, once reindexed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_PLAIN = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade():
    op.create_table(
        "search_composite",
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        *(sa.Column(name, _PLAIN) for name in ("code", "system", "target_id", "target_type", "start", "normalised", "exact")),
        sa.Column("low", sa.Double()),
        sa.Column("high", sa.Double()),
        sa.Column("unit", _PLAIN),
    )
    coded = sa.text("low IS NULL")
    op.create_index(
        "search_composite_code", "search_composite", ["param", "code", "resource_key"], sqlite_where=coded, postgresql_where=coded
    )
    op.create_index("search_composite_resource", "search_composite", ["resource_key", "at"])
    op.create_table(
        "search_position",
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        *(sa.Column(axis, sa.Double(), nullable=False) for axis in "xyz"),
    )
    op.create_index("search_position_box", "search_position", ["param", "z", "x", "y", "resource_key"])
    op.create_index("search_position_resource", "search_position", ["resource_key"])


def downgrade():
    op.drop_table("search_position")
    op.drop_table("search_composite")
