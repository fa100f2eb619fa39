"""The keys with which identity tokens are signed: public parts as JWK, private parts as sealed bytes that only a seal opens.

https://openid.net/specs/openid-connect-core-1_0.html#RotateSigKeys. Times are seconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.store.database import Database


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key; `retired`: since when nothing is signed with it."""

    kid: str
    algorithm: str
    public: Mapping[str, Any]
    private: bytes
    created: int
    retired: int | None


class SigningKeyRows:
    """The keys of all processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def active(self, algorithm: str) -> StoredKey | None:
        """The key to sign with, the newest; None when there is none yet."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM signing_key WHERE algorithm = $1 AND retired IS NULL ORDER BY created DESC, kid LIMIT 1", algorithm
            )
        return None if row is None else _stored(row)

    async def all(self, retired_after: int) -> list[StoredKey]:
        """Every key that is not retired, or was later than this."""
        async with self._database.reading() as connection:
            rows = await connection.fetch(
                "SELECT * FROM signing_key WHERE retired IS NULL OR retired > $1 ORDER BY created, kid", retired_after
            )
        return [_stored(row) for row in rows]

    async def add(self, key: StoredKey, *, replace: bool) -> None:
        """A new key; with `replace` those before it retire, else it is kept only if there is none (of many that add one, one wins)."""
        async with self._database.writing() as connection:
            if self._database.dialect == "postgresql":
                await connection.execute("LOCK TABLE signing_key IN SHARE ROW EXCLUSIVE MODE")
            if replace:
                await connection.execute(
                    "UPDATE signing_key SET retired = $2 WHERE algorithm = $1 AND retired IS NULL", key.algorithm, key.created
                )
            await connection.execute(
                "INSERT INTO signing_key (kid, algorithm, public, private, created) SELECT $1, $2, $3, $4, $5"
                " WHERE NOT EXISTS (SELECT 1 FROM signing_key WHERE algorithm = $2 AND retired IS NULL)",
                key.kid,
                key.algorithm,
                json.dumps(dict(key.public)),
                key.private,
                key.created,
            )

    async def forget(self, retired_before: int) -> None:
        """Keys that retired before this are needed no more."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM signing_key WHERE retired <= $1", retired_before)


def _stored(row: Mapping[str, Any]) -> StoredKey:
    return StoredKey(row["kid"], row["algorithm"], json.loads(row["public"]), row["private"], row["created"], row["retired"])
