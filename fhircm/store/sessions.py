"""Browsers in which somebody is signed in, or about to be, by the SHA-256 of their cookie. Times are seconds since the epoch.

`expires` moves on while somebody is there, so that one comparison tells whether a session lasts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.store.database import Connection, Database
from fhircm.store.logins import Login, find


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session. `login_id` is None while somebody has yet to prove who that is; `payload` is what was told on the way."""

    digest: bytes
    login_id: str | None
    login: Login | None
    payload: Mapping[str, Any]
    created: int
    last_seen: int
    expires: int


class SessionRecords:
    """Keeps sessions. One that ends takes its refresh tokens along (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html: online_access)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, digest: bytes, login_id: str | None, payload: Mapping[str, Any], now: int, expires: int) -> None:
        """A new session; those that are over are forgotten."""
        async with self._database.writing() as connection:
            for row in await connection.fetch("SELECT digest FROM session WHERE expires <= $1", now):
                await _end(connection, row["digest"])
            await connection.execute(
                "INSERT INTO session (digest, login_id, payload, created, last_seen, expires) VALUES ($1, $2, $3, $4, $4, $5)",
                digest,
                login_id,
                json.dumps(dict(payload)),
                now,
                expires,
            )

    async def find(self, digest: bytes) -> SessionRecord | None:
        """A session, over or not."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow("SELECT * FROM session WHERE digest = $1", digest)
            return None if row is None else await _record(connection, row)

    async def of(self, login_id: str) -> list[SessionRecord]:
        """The sessions of a person, the newest first."""
        async with self._database.reading() as connection:
            rows = await connection.fetch("SELECT * FROM session WHERE login_id = $1 ORDER BY created DESC, digest", login_id)
            return [await _record(connection, row) for row in rows]

    async def seen(self, digest: bytes, now: int, expires: int) -> None:
        """Somebody is there, so it lasts until then."""
        await self._execute("UPDATE session SET last_seen = $2, expires = $3 WHERE digest = $1", digest, now, expires)

    async def tell(self, digest: bytes, payload: Mapping[str, Any]) -> None:
        """Keep something else with a session."""
        await self._execute("UPDATE session SET payload = $2 WHERE digest = $1", digest, json.dumps(dict(payload)))

    async def take(self, digest: bytes) -> bool:
        """End a session, once: False when another request did."""
        async with self._database.writing() as connection:
            return await _end(connection, digest)

    async def end_all(self, login_id: str, but: bytes | None = None) -> None:
        """End the sessions of a person, all of them or all but one."""
        async with self._database.writing() as connection:
            for row in await connection.fetch("SELECT digest FROM session WHERE login_id = $1", login_id):
                if row["digest"] != but:
                    await _end(connection, row["digest"])

    async def _execute(self, sql: str, *arguments: Any) -> None:
        async with self._database.writing() as connection:
            await connection.execute(sql, *arguments)


async def _end(connection: Connection, digest: bytes) -> bool:
    await connection.execute("DELETE FROM refresh_token WHERE session = $1", digest)
    return await connection.fetchval("DELETE FROM session WHERE digest = $1 RETURNING digest", digest) is not None


async def _record(connection: Connection, row: Mapping[str, Any]) -> SessionRecord:
    login = await find(connection, row["login_id"]) if row["login_id"] else None
    return SessionRecord(
        bytes(row["digest"]), row["login_id"], login, json.loads(row["payload"]), row["created"], row["last_seen"], row["expires"]
    )
