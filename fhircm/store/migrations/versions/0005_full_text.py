"""The words of resources, for _text and _content; empty unless full text is switched on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

SQLITE = (
    "CREATE VIRTUAL TABLE search_text_index USING fts5(words, content='search_text', content_rowid='key',"
    " tokenize=\"ascii tokenchars '@'\", detail=none, columnsize=0)",
    "CREATE TRIGGER search_text_written AFTER INSERT ON search_text BEGIN"
    " INSERT INTO search_text_index (rowid, words) VALUES (new.key, new.words); END",
    "CREATE TRIGGER search_text_deleted AFTER DELETE ON search_text BEGIN"
    " INSERT INTO search_text_index (search_text_index, rowid, words) VALUES ('delete', old.key, old.words); END",
)
# Every search reads through what is not in its place yet; and where that is much, PostgreSQL would rather read the table.
POSTGRESQL = ("CREATE INDEX search_text_index ON search_text USING gin ((words::tsvector)) WITH (gin_pending_list_limit = 256)",)


def upgrade():
    op.create_table(
        "search_text",
        sa.Column("key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("words", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("search_text_resource", "search_text", ["resource_key"])
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(statement)


def downgrade():
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE search_text_index")
    op.drop_table("search_text")
