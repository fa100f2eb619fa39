"""The people who may sign in, and how often in a row somebody failed to. Times are seconds since the epoch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.outcome import Conflict
from fhircm.store.database import Connection, Database

FREE_FAILURES = 5  # in a row; from then on sign-in pauses after each
_COLUMNS = (
    "id, username, name, fhir_user, organization, roles, issuer, subject, disabled, created, failed, locked_until,"
    " password IS NOT NULL AS has_password, totp IS NOT NULL AS has_totp"
)
# A minute after the fifth failure, twice as long after each further one, an hour at most.
_PAUSE = "CASE WHEN failed + 1 < 5 THEN 0 WHEN failed + 1 > 10 THEN 3600 ELSE 60 * (1 << (failed + 1 - 5)) END"


class UsernameTaken(Conflict):
    """Somebody else signs in under this name, or with this identity of the provider."""


@dataclass(frozen=True, slots=True)
class Login:
    """A person who may sign in. `fhir_user` and `organization` are references such as Practitioner/1.

    `issuer` and `subject` say who that is at the organisation's own OpenID Connect provider.
    """

    id: str
    username: str | None
    name: str
    fhir_user: str
    organization: str
    roles: frozenset[str]
    issuer: str | None = None
    subject: str | None = None
    disabled: bool = False
    created: int = 0
    failed: int = 0
    locked_until: int = 0
    has_password: bool = False
    has_totp: bool = False


@dataclass(frozen=True, slots=True)
class Secrets:
    """By what a person proves who that is: the hash of the password, the sealed TOTP secret."""

    password: str | None
    totp: bytes | None


class Logins:
    """Keeps who may sign in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, login: Login, password: str | None = None) -> None:
        """Somebody new; `password` is its hash. Raises UsernameTaken."""
        async with self._database.writing() as connection:
            added = await connection.fetchval(
                "INSERT INTO login (id, username, name, fhir_user, organization, roles, password, issuer, subject, disabled, created)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING id",
                login.id,
                login.username,
                login.name,
                login.fhir_user,
                login.organization,
                _roles(login.roles),
                password,
                login.issuer,
                login.subject,
                login.disabled,
                login.created,
            )
        if added is None:
            raise UsernameTaken("Somebody signs in under this name already")

    async def get(self, id: str) -> Login | None:
        """Who has this id."""
        return await self._one("id = $1", id)

    async def by_username(self, username: str) -> Login | None:
        """Who signs in under this name."""
        return await self._one("username = $1", username)

    async def by_identity(self, issuer: str, subject: str) -> Login | None:
        """Who this is at an OpenID Connect provider."""
        return await self._one("issuer = $1 AND subject = $2", issuer, subject)

    async def all(self) -> list[Login]:
        """Everybody, by name."""
        async with self._database.reading() as connection:
            rows = await connection.fetch(f"SELECT {_COLUMNS} FROM login ORDER BY username, id")
        return [_login(row) for row in rows]

    async def _one(self, condition: str, *arguments: str) -> Login | None:
        async with self._database.reading() as connection:
            row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM login WHERE {condition}", *arguments)
        return None if row is None else _login(row)

    # --- what proves who somebody is ---

    async def secrets(self, id: str) -> Secrets:
        """What proves who somebody is; nothing does for an id that nobody has."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow("SELECT password, totp FROM login WHERE id = $1", id)
        return Secrets(None, None) if row is None else Secrets(row["password"], row["totp"])

    async def attempt(self, id: str, now: int) -> bool:
        """Count an attempt as failed before it is known whether it is, so that none of many at once goes uncounted.

        False: sign-in pauses for this person, and the attempt must not be looked at.
        """
        async with self._database.writing() as connection:
            counted = await connection.fetchval(
                f"UPDATE login SET failed = failed + 1, locked_until = CASE WHEN failed + 1 < {FREE_FAILURES} THEN 0"
                f" ELSE CAST($2 AS BIGINT) + {_PAUSE} END WHERE id = $1 AND locked_until <= CAST($2 AS BIGINT) RETURNING id",
                id,
                now,
            )
        return counted is not None

    async def half_proved(self, id: str) -> None:
        """The password was right and a code is still to come: that attempt did not fail, those before it still count."""
        async with self._database.writing() as connection:
            await connection.execute("UPDATE login SET failed = failed - 1, locked_until = 0 WHERE id = $1 AND failed > 0", id)

    async def unlock(self, id: str) -> None:
        """Forget the failures: somebody signed in, or the administrator says so."""
        async with self._database.writing() as connection:
            await connection.execute("UPDATE login SET failed = 0, locked_until = 0 WHERE id = $1", id)

    async def use_code(self, id: str, step: int) -> bool:
        """Mark the TOTP code of a time step as used; False when it or a later one was used before, by any process."""
        async with self._database.writing() as connection:
            used = await connection.fetchval(
                "UPDATE login SET totp_used = $2 WHERE id = $1 AND (totp_used IS NULL OR totp_used < $2) RETURNING id", id, step
            )
        return used is not None

    # --- changes ---

    async def set_password(self, id: str, password: str | None) -> None:
        """Another hash, or none: then no password is right."""
        await self._set(id, "password = $2", password)

    async def set_totp(self, id: str, sealed: bytes | None, used: int | None) -> None:
        """Another sealed TOTP secret, or none; `used` is the time step of the code that was shown to prove it."""
        await self._set(id, "totp = $2, totp_used = $3", sealed, used)

    async def set_roles(self, id: str, roles: Iterable[str]) -> None:
        """Other roles."""
        await self._set(id, "roles = $2", _roles(roles))

    async def set_place(self, id: str, name: str, fhir_user: str, organization: str) -> None:
        """What somebody is called, who that is in FHIR, and for whom they work."""
        await self._set(id, "name = $2, fhir_user = $3, organization = $4", name, fhir_user, organization)

    async def set_disabled(self, id: str, disabled: bool) -> None:
        """Whether somebody may not sign in any more."""
        await self._set(id, "disabled = $2", disabled)

    async def _set(self, id: str, change: str, *values: Any) -> None:
        async with self._database.writing() as connection:
            await connection.execute(f"UPDATE login SET {change} WHERE id = $1", id, *values)


async def find(connection: Connection, id: str) -> Login | None:
    """Who has this id, within a transaction."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM login WHERE id = $1", id)
    return None if row is None else _login(row)


def _roles(roles: Iterable[str]) -> str:
    return json.dumps(sorted(roles))


def _login(row: Mapping[str, Any]) -> Login:
    return Login(
        row["id"],
        row["username"],
        row["name"],
        row["fhir_user"],
        row["organization"],
        frozenset(json.loads(row["roles"])),
        row["issuer"],
        row["subject"],
        bool(row["disabled"]),
        row["created"],
        row["failed"],
        row["locked_until"],
        bool(row["has_password"]),
        bool(row["has_totp"]),
    )
