"""What people let apps do, from the request of an app to its tokens; each step happens once, whichever process does it.

Times are seconds since the epoch. Codes, launches and refresh tokens are kept by their SHA-256: a copy of the database gives none away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.store.database import Connection, Database

_USABLE = (  # the grant is alive, and so is the person who gave it
    "g.revoked IS NULL AND g.expires > {now}"
    " AND (g.login_id IS NULL OR EXISTS (SELECT 1 FROM login l WHERE l.id = g.login_id AND NOT l.disabled))"
)
_COLUMNS = "g.id, g.client_id, g.login_id, g.scope, g.context, g.created, g.expires, g.revoked"


class UsedAgain(Exception):
    """A code or refresh token was used before: its grant is ended now, with every token that came of it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a person (or nobody: login_id None) let an app do, and in which launch context."""

    id: str
    client_id: str
    login_id: str | None
    scope: str
    context: Mapping[str, Any]
    created: int
    expires: int
    revoked: int | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """A code that was used just now, for the first time."""

    grant: Grant
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh token that is known; `used`: it was exchanged for another before."""

    grant: Grant
    session: bytes | None
    used: bool


class Grants:
    """Requests of apps, the grants that come of them, codes, refresh tokens, launches and remembered consents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- requests that wait for a person ---

    async def ask(self, id: str, client_id: str, payload: Mapping[str, Any], expires: int, now: int) -> None:
        """Keep a checked request until a person has decided; those that nobody decided in time are forgotten."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM authorization_request WHERE expires <= $1", now)
            await connection.execute(
                "INSERT INTO authorization_request (id, client_id, payload, expires) VALUES ($1, $2, $3, $4)",
                id,
                client_id,
                json.dumps(payload),
                expires,
            )

    async def request(self, id: str, now: int) -> dict[str, Any] | None:
        """A request that still waits, or None."""
        async with self._database.reading() as connection:
            text = await connection.fetchval("SELECT payload FROM authorization_request WHERE id = $1 AND expires > $2", id, now)
        return None if text is None else json.loads(text)

    async def drop_request(self, id: str, now: int) -> dict[str, Any] | None:
        """End a request without a grant; None when it does not wait any more."""
        async with self._database.writing() as connection:
            text = await connection.fetchval(
                "DELETE FROM authorization_request WHERE id = $1 AND expires > $2 RETURNING payload", id, now
            )
        return None if text is None else json.loads(text)

    async def decide(
        self, request_id: str, grant: Grant, code: str, payload: Mapping[str, Any], code_expires: int, now: int
    ) -> bool:
        """End a request with a grant and the code for it; False when it was decided before, and nothing is granted."""
        async with self._database.writing() as connection:
            waits = await connection.fetchval(
                "DELETE FROM authorization_request WHERE id = $1 AND client_id = $2 AND expires > $3 RETURNING id",
                request_id,
                grant.client_id,
                now,
            )
            if waits is None:
                return False
            await _forget(connection, now)
            await connection.execute(
                "INSERT INTO authorization_grant (id, client_id, login_id, scope, context, created, expires)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7)",
                grant.id,
                grant.client_id,
                grant.login_id,
                grant.scope,
                json.dumps(dict(grant.context)),
                grant.created,
                grant.expires,
            )
            await connection.execute(
                "INSERT INTO authorization_code (digest, grant_id, payload, expires) VALUES ($1, $2, $3, $4)",
                _digest(code),
                grant.id,
                json.dumps(dict(payload)),
                code_expires,
            )
        return True

    # --- codes ---

    async def use_code(self, code: str, now: int) -> Code | None:
        """Use a code: of many that try, one succeeds; None for one that is not known, or no longer good. Raises UsedAgain."""
        async with self._database.writing() as connection:
            row = await connection.fetchrow(
                "UPDATE authorization_code SET used = $2 WHERE digest = $1 AND used IS NULL RETURNING grant_id, payload, expires",
                _digest(code),
                now,
            )
            if row is None:
                grant_id = await connection.fetchval("SELECT grant_id FROM authorization_code WHERE digest = $1", _digest(code))
                if grant_id is None:
                    return None
                await _revoke(connection, grant_id, now)
            else:
                grant = await _usable(connection, row["grant_id"], now)
                return None if grant is None or row["expires"] <= now else Code(grant, json.loads(row["payload"]))
        raise UsedAgain  # only here, for the revocation is kept

    # --- refresh tokens ---

    async def add_refresh_token(self, token: str, grant: Grant, session: bytes | None) -> None:
        """The first refresh token of a grant; with `session` it ends when that browser signs out."""
        async with self._database.writing() as connection:
            await _add_refresh_token(connection, token, grant.id, session, grant.expires)

    async def refresh_token(self, token: str) -> Refresh | None:
        """What is known of a refresh token, whatever became of its grant."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS}, r.session, r.used FROM refresh_token r JOIN authorization_grant g ON g.id = r.grant_id"
                " WHERE r.digest = $1",
                _digest(token),
            )
        return None if row is None else Refresh(_grant(row), row["session"], row["used"] is not None)

    async def rotate(self, token: str, fresh: str, now: int) -> Grant | None:
        """Exchange a refresh token for a fresh one: of many that try, one succeeds; None for one that is no longer good. Raises UsedAgain."""
        async with self._database.writing() as connection:
            row = await connection.fetchrow(
                "UPDATE refresh_token SET used = $2 WHERE digest = $1 AND used IS NULL AND expires > $2"
                " AND (session IS NULL OR EXISTS (SELECT 1 FROM session s WHERE s.digest = refresh_token.session"
                " AND s.expires > $2 AND s.login_id IS NOT NULL)) RETURNING grant_id, session, expires",
                _digest(token),
                now,
            )
            if row is None:
                again = await connection.fetchval(
                    "SELECT grant_id FROM refresh_token WHERE digest = $1 AND used IS NOT NULL", _digest(token)
                )
                if again is None:
                    return None
                await _revoke(connection, again, now)
            else:
                grant = await _usable(connection, row["grant_id"], now)
                if grant is not None:
                    await _add_refresh_token(connection, fresh, grant.id, row["session"], row["expires"])
                return grant
        raise UsedAgain

    # --- grants ---

    async def grants(self, now: int, *, client_id: str | None = None, login_id: str | None = None) -> list[Grant]:
        """The grants that are alive, newest first: all, or those to a client, or those of a person."""
        conditions, arguments = ["revoked IS NULL", "expires > $1"], [now]
        for column, value in (("client_id", client_id), ("login_id", login_id)):
            if value is not None:
                arguments.append(value)  # type: ignore[arg-type]
                conditions.append(f"{column} = ${len(arguments)}")
        async with self._database.reading() as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM authorization_grant g WHERE {' AND '.join(conditions)} ORDER BY created DESC, id",
                *arguments,
            )
        return [_grant(row) for row in rows]

    async def grant(self, grant_id: str) -> Grant | None:
        """A grant, whatever became of it; None when there is none, or it is forgotten."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM authorization_grant g WHERE g.id = $1", grant_id)
        return None if row is None else _grant(row)

    async def revoke(self, grant_id: str, now: int, *, login_id: str | None = None) -> bool:
        """End a grant with all its tokens, and what was remembered of the consent; False when there was none that is alive.

        With `login_id`, only when it is a grant of that person.
        """
        async with self._database.writing() as connection:
            owner = await connection.fetchval("SELECT login_id FROM authorization_grant WHERE id = $1", grant_id)
            return (login_id is None or owner == login_id) and await _revoke(connection, grant_id, now)

    async def revoke_client(self, client_id: str, now: int) -> int:
        """End every grant and every token of a client, and tell how many grants there were."""
        async with self._database.writing() as connection:
            rows = await connection.fetch(
                "UPDATE authorization_grant SET revoked = $2 WHERE client_id = $1 AND revoked IS NULL AND expires > $2 RETURNING id",
                client_id,
                now,
            )
            for table in ("access_token", "authorization_request", "remembered_consent"):
                await connection.execute(f"DELETE FROM {table} WHERE client_id = $1", client_id)
        return len(rows)

    async def revoke_access_token(self, token: str, client_id: str) -> bool:
        """End one access token of a client; False when it has none such."""
        async with self._database.writing() as connection:
            gone = await connection.fetchval(
                "DELETE FROM access_token WHERE digest = $1 AND client_id = $2 RETURNING client_id", _digest(token), client_id
            )
        return gone is not None

    async def signed_in(self, session: bytes, login_id: str, now: int) -> int | None:
        """When a person signed in to a session that is alive, or None."""
        async with self._database.reading() as connection:
            created = await connection.fetchval(
                "SELECT created FROM session WHERE digest = $1 AND login_id = $2 AND expires > $3", session, login_id, now
            )
        return None if created is None else int(created)

    # --- launches ---

    async def add_launch(self, launch: str, payload: Mapping[str, Any], expires: int, now: int) -> None:
        """Keep the context of a launch until the app comes with it."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM launch WHERE expires <= $1", now)
            await connection.execute(
                "INSERT INTO launch (digest, payload, expires) VALUES ($1, $2, $3)",
                _digest(launch),
                json.dumps(dict(payload)),
                expires,
            )

    async def take_launch(self, launch: str, now: int) -> dict[str, Any] | None:
        """The context of a launch, once."""
        async with self._database.writing() as connection:
            text = await connection.fetchval(
                "DELETE FROM launch WHERE digest = $1 AND expires > $2 RETURNING payload", _digest(launch), now
            )
        return None if text is None else json.loads(text)

    # --- remembered consents ---

    async def remembered(self, login_id: str, client_id: str) -> str | None:
        """The scopes that a person agreed to before for a client, or None."""
        async with self._database.reading() as connection:
            text = await connection.fetchval(
                "SELECT scope FROM remembered_consent WHERE login_id = $1 AND client_id = $2", login_id, client_id
            )
        return None if text is None else str(text)

    async def remember(self, login_id: str, client_id: str, scope: str, now: int) -> None:
        """Keep what a person agreed to for a client, in place of what was kept before."""
        async with self._database.writing() as connection:
            await connection.execute(
                "INSERT INTO remembered_consent (login_id, client_id, scope, given) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (login_id, client_id) DO UPDATE SET scope = excluded.scope, given = excluded.given",
                login_id,
                client_id,
                scope,
                now,
            )

    async def forget(self, login_id: str, client_id: str) -> None:
        """Ask this person again when the client comes again."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM remembered_consent WHERE login_id = $1 AND client_id = $2", login_id, client_id)


async def _usable(connection: Connection, grant_id: str, now: int) -> Grant | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM authorization_grant g WHERE g.id = $1 AND {_USABLE.format(now='$2')}", grant_id, now
    )
    return None if row is None else _grant(row)


async def _add_refresh_token(connection: Connection, token: str, grant_id: str, session: bytes | None, expires: int) -> None:
    await connection.execute(
        "INSERT INTO refresh_token (digest, grant_id, session, expires) VALUES ($1, $2, $3, $4)",
        _digest(token),
        grant_id,
        session,
        expires,
    )


async def _revoke(connection: Connection, grant_id: str, now: int) -> bool:
    row = await connection.fetchrow(
        "UPDATE authorization_grant SET revoked = $2 WHERE id = $1 AND revoked IS NULL AND expires > $2"
        " RETURNING client_id, login_id",
        grant_id,
        now,
    )
    if row is None:
        return False
    await connection.execute("DELETE FROM access_token WHERE grant_id = $1", grant_id)
    await connection.execute(
        "DELETE FROM remembered_consent WHERE login_id = $1 AND client_id = $2", row["login_id"], row["client_id"]
    )
    return True


async def _forget(connection: Connection, now: int) -> None:
    """Rows that nobody can use any more. A grant goes last: its tokens are worth what it is worth."""
    day = now - 86_400
    await connection.execute("DELETE FROM authorization_code WHERE expires <= $1", day)
    await connection.execute("DELETE FROM refresh_token WHERE expires <= $1", day)
    await connection.execute(
        "DELETE FROM authorization_grant WHERE expires <= $1"
        " AND NOT EXISTS (SELECT 1 FROM access_token t WHERE t.grant_id = authorization_grant.id)",
        day,
    )


def _grant(row: Mapping[str, Any]) -> Grant:
    return Grant(
        row["id"],
        row["client_id"],
        row["login_id"],
        row["scope"],
        json.loads(row["context"]),
        row["created"],
        row["expires"],
        row["revoked"],
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
