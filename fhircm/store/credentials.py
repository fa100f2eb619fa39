"""Clients and tokens of the authorization server. Times are seconds since the epoch (OAuth's), not the clock of deadlines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fhircm.store.database import Database


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known of an access token."""

    client_id: str
    scope: str
    expires: int
    grant_id: str | None = None
    context: dict[str, Any] = field(default_factory=dict)


class Credentials:
    """The registered clients, their tokens, and the assertions that were used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_client(self, client_id: str, registration: dict[str, Any]) -> None:
        """Register a client, or register it anew."""
        async with self._database.writing() as connection:
            await connection.execute(
                "INSERT INTO client (client_id, registration) VALUES ($1, $2)"
                " ON CONFLICT (client_id) DO UPDATE SET registration = excluded.registration",
                client_id,
                json.dumps(registration),
            )

    async def create_client(self, client_id: str, registration: dict[str, Any]) -> bool:
        """Register a client under a name that is free; False when it is taken."""
        async with self._database.writing() as connection:
            made = await connection.fetchval(
                "INSERT INTO client (client_id, registration) VALUES ($1, $2) ON CONFLICT (client_id) DO NOTHING RETURNING client_id",
                client_id,
                json.dumps(registration),
            )
        return made is not None

    async def change_client(self, client_id: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change members of a registration (None takes one away) and keep what others change meanwhile; None: there is no such client."""
        async with self._database.writing() as connection:
            while True:
                text = await connection.fetchval("SELECT registration FROM client WHERE client_id = $1", client_id)
                if text is None:
                    return None
                changed = {name: value for name, value in {**json.loads(text), **changes}.items() if value is not None}
                done = await connection.fetchval(
                    "UPDATE client SET registration = $2 WHERE client_id = $1 AND registration = $3 RETURNING client_id",
                    client_id,
                    json.dumps(changed),
                    text,
                )
                if done is not None:
                    return changed

    async def remove_client(self, client_id: str) -> bool:
        """Forget a client; False when there was none."""
        async with self._database.writing() as connection:
            gone = await connection.fetchval("DELETE FROM client WHERE client_id = $1 RETURNING client_id", client_id)
        return gone is not None

    async def clients(self) -> dict[str, dict[str, Any]]:
        """Every registration by its client_id."""
        async with self._database.reading() as connection:
            rows = await connection.fetch("SELECT client_id, registration FROM client ORDER BY client_id")
        return {row["client_id"]: json.loads(row["registration"]) for row in rows}

    async def client(self, client_id: str) -> dict[str, Any] | None:
        """The registration of a client, or None."""
        async with self._database.reading() as connection:
            text = await connection.fetchval("SELECT registration FROM client WHERE client_id = $1", client_id)
        return None if text is None else json.loads(text)

    async def save_token(self, token: str, record: TokenRecord, now: int) -> None:
        """Keep a token by its digest; those that expired before `now` are forgotten."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM access_token WHERE expires <= $1", now)
            await connection.execute(
                "INSERT INTO access_token (digest, client_id, scope, expires, grant_id, context) VALUES ($1, $2, $3, $4, $5, $6)",
                _digest(token),
                record.client_id,
                record.scope,
                record.expires,
                record.grant_id,
                json.dumps(record.context),
            )

    async def token(self, token: str) -> TokenRecord | None:
        """What is kept of a token, expired or not; None when it was never given out or is forgotten."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow(
                "SELECT client_id, scope, expires, grant_id, context FROM access_token WHERE digest = $1", _digest(token)
            )
        if row is None:
            return None
        return TokenRecord(row["client_id"], row["scope"], row["expires"], row["grant_id"], json.loads(row["context"]))

    async def use_assertion(self, client_id: str, jti: str, expires: int, now: int) -> bool:
        """Mark an assertion as used; False when it was used before, by any process."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM used_assertion WHERE expires <= $1", now)
            used = await connection.fetchval(
                "INSERT INTO used_assertion (client_id, jti, expires) VALUES ($1, $2, $3)"
                " ON CONFLICT (client_id, jti) DO NOTHING RETURNING jti",
                client_id,
                jti,
                expires,
            )
        return used is not None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
