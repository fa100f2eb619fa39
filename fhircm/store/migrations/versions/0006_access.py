"""Who gets in and what each may see: grants, sessions, people, signing keys, care relationships, rules of consents, the chain of audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_PLAIN = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade():
    op.create_table(
        "audit_link",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", _PLAIN, nullable=False),
        sa.Column("recorded", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("audit_link_id", "audit_link", ["id"], unique=True)
    op.create_table(
        "authorization_code",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("grant_id", _PLAIN, nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("authorization_code_expires", "authorization_code", ["expires"], unique=False)
    op.create_table(
        "authorization_grant",
        sa.Column("id", _PLAIN, nullable=False),
        sa.Column("client_id", _PLAIN, nullable=False),
        sa.Column("login_id", _PLAIN, nullable=True),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("authorization_grant_client", "authorization_grant", ["client_id"], unique=False)
    op.create_index("authorization_grant_login", "authorization_grant", ["login_id"], unique=False)
    op.create_table(
        "authorization_request",
        sa.Column("id", _PLAIN, nullable=False),
        sa.Column("client_id", _PLAIN, nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("authorization_request_expires", "authorization_request", ["expires"], unique=False)
    op.create_table(
        "care_relationship",
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("grantee", _PLAIN, nullable=False),
        sa.Column("type", _PLAIN, nullable=False),
        sa.Column("id", _PLAIN, nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("low", sa.BigInteger(), nullable=False),
        sa.Column("high", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("type", "id", "grantee", "resource_key", "param", "low"),
        sqlite_with_rowid=False,
    )
    op.create_index("care_relationship_grantee", "care_relationship", ["grantee", "type", "id"], unique=False)
    op.create_index("care_relationship_resource", "care_relationship", ["resource_key"], unique=False)
    op.create_table(
        "consent_rule",
        sa.Column("resource_key", sa.BigInteger(), nullable=False),
        sa.Column("param", sa.Integer(), nullable=False),
        sa.Column("patient_id", _PLAIN, nullable=False),
        sa.Column("path", _PLAIN, nullable=False),
        sa.Column("permit", sa.Boolean(), nullable=False),
        sa.Column("low", sa.BigInteger(), nullable=False),
        sa.Column("high", sa.BigInteger(), nullable=False),
        sa.Column("actors", sa.Text(), nullable=False),
        sa.Column("purposes", sa.Text(), nullable=False),
        sa.Column("classes", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("codes", sa.Text(), nullable=False),
        sa.Column("things", sa.Text(), nullable=False),
        sa.Column("data_low", sa.BigInteger(), nullable=False),
        sa.Column("data_high", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "resource_key", "path"),
        sqlite_with_rowid=False,
    )
    op.create_index("consent_rule_resource", "consent_rule", ["resource_key"], unique=False)
    op.create_table(
        "launch",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("launch_expires", "launch", ["expires"], unique=False)
    op.create_table(
        "login",
        sa.Column("id", _PLAIN, nullable=False),
        sa.Column("username", _PLAIN, nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fhir_user", _PLAIN, nullable=False),
        sa.Column("organization", _PLAIN, nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("totp", sa.LargeBinary(), nullable=True),
        sa.Column("totp_used", sa.BigInteger(), nullable=True),
        sa.Column("issuer", _PLAIN, nullable=True),
        sa.Column("subject", _PLAIN, nullable=True),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("locked_until", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("login_external", "login", ["issuer", "subject"], unique=True)
    op.create_index("login_username", "login", ["username"], unique=True)
    op.create_table(
        "refresh_token",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("grant_id", _PLAIN, nullable=False),
        sa.Column("session", sa.LargeBinary(), nullable=True),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("refresh_token_expires", "refresh_token", ["expires"], unique=False)
    op.create_index("refresh_token_grant", "refresh_token", ["grant_id"], unique=False)
    op.create_table(
        "remembered_consent",
        sa.Column("login_id", _PLAIN, nullable=False),
        sa.Column("client_id", _PLAIN, nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("given", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("login_id", "client_id"),
    )
    op.create_table(
        "session",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("login_id", _PLAIN, nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("session_expires", "session", ["expires"], unique=False)
    op.create_index("session_login", "session", ["login_id"], unique=False)
    op.create_table(
        "signing_key",
        sa.Column("kid", _PLAIN, nullable=False),
        sa.Column("algorithm", _PLAIN, nullable=False),
        sa.Column("public", sa.Text(), nullable=False),
        sa.Column("private", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("retired", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("kid"),
    )
    op.add_column("access_token", sa.Column("grant_id", _PLAIN, nullable=True))
    op.add_column("access_token", sa.Column("context", sa.Text(), server_default=sa.text("'{}'"), nullable=False))
    op.create_index("access_token_grant", "access_token", ["grant_id"], unique=False)
