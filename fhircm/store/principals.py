"""Who a token stands for, in one query; and by which references resources name somebody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fhircm.fhir.definitions import param_key
from fhircm.store.database import Connection, Database
from fhircm.store.operations import Actor
from fhircm.store.search_sql import Builder
from fhircm.store.search_tests import Listed
from fhircm.store.visibility import MANY, PLANNED_ALIKE

_NPI = "http://hl7.org/fhir/sid/us-npi"
_ROUNDS = 5  # how deep departments of departments are followed


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """What is known of an access token; `purpose` is that for which a system is registered;
    `why_not` tells why it is worth nothing, None that it is good.

    `expires` is in seconds since the epoch.
    """

    client_id: str
    scope: str
    expires: int
    grant_id: str | None
    context: Mapping[str, Any]
    roles: tuple[str, ...]
    organization: str | None
    user: str | None
    login: str | None
    purpose: str | None
    why_not: str | None


class Principals:
    """Looks up who is behind a token."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def holder(self, token: str) -> TokenHolder | None:
        """Who holds a token, expired or not; None for one that was never given out or is forgotten."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow(
                "SELECT t.client_id, t.scope, t.expires, t.grant_id, t.context, c.registration, g.revoked, g.login_id,"
                " l.organization, l.roles, l.fhir_user, l.disabled FROM access_token t LEFT JOIN client c ON c.client_id = t.client_id"
                " LEFT JOIN authorization_grant g ON g.id = t.grant_id LEFT JOIN login l ON l.id = g.login_id WHERE t.digest = $1",
                hashlib.sha256(token.encode()).digest(),
            )
        return None if row is None else _holder(row)

    async def known_as(self, references: Iterable[str]) -> frozenset[str]:
        """All references that mean the same as these: copies with the same NPI, departments of an organisation, roles of a practitioner."""
        async with self._database.reading() as connection:
            return await known_as(connection, self._database.dialect, references)

    async def count_relationships(self, known_as: Iterable[str]) -> int:
        """How many relationships these have with patients, at most MANY."""
        builder = Builder(self._database.dialect)
        listed = builder.argument(Listed(sorted(known_as)))
        async with self._database.reading() as connection:
            count = await connection.fetchval(
                f"SELECT COUNT(*) FROM (SELECT 1 FROM care_relationship WHERE grantee {listed} AND type = 'Patient' LIMIT {MANY}) g",
                *builder.arguments,
            )
        return int(count)


def _holder(row: Mapping[str, Any]) -> TokenHolder:
    registration = json.loads(row["registration"]) if row["registration"] else None
    person = row["login_id"] is not None
    why_not = None
    if registration is None or registration.get("disabled"):
        why_not = "The client may no longer sign in"
    elif row["revoked"] is not None:
        why_not = "The permission of this token was withdrawn"
    elif person and (row["fhir_user"] is None or row["disabled"]):
        why_not = "The person may no longer sign in"
    registration = registration or {}
    return TokenHolder(
        row["client_id"],
        row["scope"],
        row["expires"],
        row["grant_id"],
        json.loads(row["context"]),
        tuple(json.loads(row["roles"] or "[]") if person else registration.get("roles") or ["system"]),
        row["organization"] if person else registration.get("organization"),
        row["fhir_user"] if person else None,
        row["login_id"],
        None if person else registration.get("purpose"),
        why_not,
    )


async def known_as(connection: Connection, dialect: str, references: Iterable[str]) -> frozenset[str]:
    """See Principals.known_as."""
    known = set(references)
    for type in ("Organization", "Practitioner"):
        known |= await _copies(connection, dialect, type, known)
    await _follow(connection, dialect, known, "Organization", "partof", "Organization", _ROUNDS)
    await _follow(connection, dialect, known, "PractitionerRole", "practitioner", "Practitioner", 1)
    return frozenset(known)


# Of whom somebody is: the search parameters that tell it of a resource itself.
_HOUSES = {"PractitionerRole": "organization", "HealthcareService": "organization", "CareTeam": "participant"}


async def placed(connection: Connection, dialect: str, actor: Actor, references: Iterable[str]) -> Actor:
    """The actor, known besides as those of these references that are of its organisations, or of a team that it is in.

    Practitioners in no role of any organisation are `unplaced`.
    """
    asked = {(type, id) for type, _, id in (one.partition("/") for one in set(references) - actor.known_as) if id}
    builder, parts = Builder(dialect), []
    for source, parameter in _HOUSES.items():
        if ids := sorted(id for type, id in asked if type == source):
            parts.append(
                f"SELECT r.type, r.id, s.target_type, s.target_id FROM resource r JOIN search_reference s ON s.resource_key = r.key"
                f" AND s.param = {param_key(source, parameter)} WHERE NOT r.deleted AND r.type = {builder.argument(source)}"
                f" AND r.id {builder.shared_argument(source, Listed(ids), PLANNED_ALIKE['list'])}"
            )
    people = sorted(id for type, id in asked if type == "Practitioner")
    if people:
        parts.append(
            "SELECT p.target_type AS type, p.target_id AS id, s.target_type, s.target_id FROM search_reference p"
            " JOIN resource r ON r.key = p.resource_key AND NOT r.deleted JOIN search_reference s ON s.resource_key = r.key"
            f" AND s.param = {param_key('PractitionerRole', 'organization')}"
            f" WHERE p.param = {param_key('PractitionerRole', 'practitioner')} AND p.target_type = 'Practitioner'"
            f" AND p.target_id {builder.shared_argument('Practitioner', Listed(people), PLANNED_ALIKE['list'])}"
        )
    rows = await connection.fetch(" UNION ".join(parts), *builder.arguments) if parts else []
    houses: dict[str, set[str]] = {}
    for row in rows:
        houses.setdefault(f"{row['type']}/{row['id']}", set()).add(f"{row['target_type']}/{row['target_id']}")
    ours = {one for one, of in houses.items() if not of.isdisjoint(actor.known_as)}
    alone = {name for id in people if (name := f"Practitioner/{id}") not in houses}
    return replace(actor, known_as=actor.known_as | ours, unplaced=frozenset(alone))


async def _copies(connection: Connection, dialect: str, type: str, known: set[str]) -> set[str]:
    """The other resources of a type with the NPI of one that is known."""
    ids = [one.partition("/")[2] for one in known if one.startswith(f"{type}/")]
    if not ids:
        return set()
    builder = Builder(dialect)
    param, own, listed = (builder.argument(one) for one in (param_key(type, "identifier"), type, _NPI))
    rows = await connection.fetch(
        f"SELECT o.id FROM resource r JOIN search_token t ON t.resource_key = r.key AND t.param = {param} AND t.system = {listed}"
        f" JOIN search_token u ON u.param = {param} AND u.code = t.code AND u.system = {listed}"
        f" JOIN resource o ON o.key = u.resource_key AND NOT o.deleted WHERE r.type = {own} AND NOT r.deleted"
        f" AND r.id {builder.shared_argument('ids', Listed(ids), PLANNED_ALIKE['list'])}",
        *builder.arguments,
    )
    return {f"{type}/{row['id']}" for row in rows}


async def _follow(
    connection: Connection, dialect: str, known: set[str], source: str, parameter: str, target: str, rounds: int
) -> None:
    """Add the resources of type `source` that refer by a parameter to one that is known, and so on."""
    fresh = {one.partition("/")[2] for one in known if one.startswith(f"{target}/")}
    for _ in range(rounds):
        if not fresh:
            return
        builder = Builder(dialect)
        rows = await connection.fetch(
            f"SELECT r.id FROM search_reference x JOIN resource r ON r.key = x.resource_key AND NOT r.deleted"
            f" WHERE x.param = {builder.argument(param_key(source, parameter))} AND x.target_type = {builder.argument(target)}"
            f" AND x.target_id {builder.shared_argument('ids', Listed(sorted(fresh)), PLANNED_ALIKE['list'])}",
            *builder.arguments,
        )
        found = {f"{source}/{row['id']}" for row in rows} - known
        known |= found
        fresh = {one.partition("/")[2] for one in found if source == target}
