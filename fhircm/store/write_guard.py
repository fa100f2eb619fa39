"""What somebody may write: nothing that is not seen is changed, referred to or told of, and nobody opens a record for himself.

docs/explanation/access.md
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.care_relationship import Relationship, kinds, makes_relationships, relationships
from fhircm.fhir.consent_rules import consent_rules
from fhircm.fhir.definitions import definitions, param_key
from fhircm.fhir.outcome import Forbidden
from fhircm.fhir.ranges import EARLIEST
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import narrowed_types
from fhircm.store.search_sql import Builder
from fhircm.store.search_tests import Listed
from fhircm.store.visibility import PLANNED_ALIKE

Identity = tuple[str, str]
_EMERGENCY = frozenset(kind.code for kind in kinds() if kind.emergency)


@dataclass(frozen=True, slots=True)
class WriteGuard:
    """What somebody may create, read, update and delete. None: everything."""

    c: Narrowing | None
    r: Narrowing | None
    u: Narrowing | None
    d: Narrowing | None
    directory: bool = False  # whether it may say who somebody is

    @property
    def seeing(self) -> Narrowing | None:
        """What is seen at all, whatever the scopes; None: everything."""
        some = self.c or self.r or self.u or self.d
        if some is None or some.viewer is None:
            return None
        return Narrowing(dict.fromkeys(definitions().resource_types, ()), some.viewer, some.now)


async def seen(connection: Connection, dialect: str, within: Narrowing | None, identities: Collection[Identity]) -> set[Identity]:
    """Those of these resources that the narrowing lets through; deleted ones are not among them."""
    found: set[Identity] = set()
    if within is None:
        return set(identities)
    for type in sorted({type for type, _ in identities}):
        builder = Builder(dialect, within)
        listed = Listed(sorted(id for one, id in identities if one == type))
        ids = builder.shared_argument("ids", listed, PLANNED_ALIKE["list"])
        rows = await connection.fetch(
            f"SELECT r.id FROM resource r WHERE r.type = {builder.argument(type)} AND r.id {ids} AND NOT r.deleted"
            f"{narrowed_types(builder, [type])}",
            *builder.arguments,
        )
        found |= {(type, row["id"]) for row in rows}
    return found


async def referred_to(connection: Connection, keys: Sequence[int]) -> set[tuple[int, Identity]]:
    """What these resources refer to as they are now, each with the key of the one that does."""
    listed = ", ".join(map(str, keys)) or "NULL"  # numbers of ours
    rows = await connection.fetch(
        f"SELECT resource_key, target_type, target_id FROM search_reference WHERE param = 0 AND resource_key IN ({listed})"
    )
    return {(row["resource_key"], (row["target_type"], row["target_id"])) for row in rows}


async def require_open(
    connection: Connection, dialect: str, within: Narrowing, trees: Sequence[Mapping[str, Any]], keys: Mapping[Identity, int]
) -> None:
    """Whoever says who cares for a patient, or what a patient consents to, must have that patient's record open. `keys` are of what exists.

    A patient who is made in the same transaction is its maker's. Raises Forbidden.
    """
    made = {tree["id"] for tree in trees if tree["resourceType"] == "Patient" and ("Patient", tree["id"]) not in keys}
    for tree in trees:
        if not makes_relationships(tree["resourceType"]) and tree["resourceType"] != "Consent":
            continue
        said = relationships(tree, whole=True)
        if any(one.parameter in _EMERGENCY for one in said):
            raise Forbidden("Emergency access is asked for with Patient/$break-glass")
        key = keys.get((tree["resourceType"], tree["id"]))
        before = await _said_before(connection, key) if key is not None and said else {}
        kept = {one for one in said if before.get(_said(tree["resourceType"], one), EARLIEST) >= one.high}
        patients = {one.id for one in said if one not in kept}
        patients |= {one.patient_id for one in consent_rules(tree)}
        missing = patients - made
        if missing and missing - await _open(connection, dialect, within, missing):
            raise Forbidden(
                f"Who cares for a patient, and what a patient consents to, may be said by those who have the record open: this"
                f" {tree['resourceType']} would open one that is not open to the caller"
            )


_IDENTITY = {"Organization": "partOf", "Practitioner": "", "PractitionerRole": "practitioner"}


async def require_same_identity(connection: Connection, trees: Sequence[Mapping[str, Any]], keys: Mapping[Identity, int]) -> None:
    """By its NPI, by what it is part of and by whose role it is a principal is known: who changes that would become somebody else.

    Raises Forbidden.
    """
    for tree in trees:
        key = keys.get((tree["resourceType"], tree["id"]))
        if tree["resourceType"] not in _IDENTITY or key is None:
            continue
        body = await connection.fetchval(
            "SELECT v.body FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version WHERE r.key = $1",
            key,
        )
        before = json.loads(bytes(body)) if body else {}
        if _identity_of(before, tree["resourceType"]) != _identity_of(tree, tree["resourceType"]):
            raise Forbidden(
                f"The identifiers of this {tree['resourceType']}, and what it is part of, are changed by those who keep the directory"
            )


def _identity_of(tree: Mapping[str, Any], type: str) -> tuple[list[tuple[Any, Any]], Any]:
    listed = sorted((str(one.get("system")), str(one.get("value"))) for one in tree.get("identifier", ()))
    return listed, tree.get(_IDENTITY[type])


def _said(type: str, one: Relationship) -> tuple[int, str, str]:
    return param_key(type, one.parameter), one.grantee, one.id


async def _said_before(connection: Connection, key: int) -> dict[tuple[int, str, str], int]:
    """The relationships that a resource makes by now, and until when: what lasts longer is a new one."""
    rows = await connection.fetch(
        "SELECT param, grantee, id, MAX(high) AS high FROM care_relationship WHERE resource_key = $1 AND whole GROUP BY param, grantee, id",
        key,
    )
    return {(row["param"], row["grantee"], row["id"]): row["high"] for row in rows}


async def _open(connection: Connection, dialect: str, within: Narrowing, patients: Collection[str]) -> set[str]:
    """Those of these patients whose whole record is open to the viewer, by a relationship that shares all types."""
    viewer = within.viewer
    assert viewer is not None
    full = ", ".join(str(kind.key) for kind in kinds() if kind.shares_record and kind.types is None)
    builder = Builder(dialect)
    listed = builder.shared_argument("patients", Listed(sorted(patients)), PLANNED_ALIKE["list"])
    known = builder.shared_argument("known", viewer.known_as, PLANNED_ALIKE["list"])
    rows = await connection.fetch(
        f"SELECT g.id FROM care_relationship g WHERE g.type = 'Patient' AND g.id {listed} AND g.whole"
        f" AND g.grantee {known} AND g.param IN ({full})"
        f" AND g.low <= {builder.argument(within.now)} AND g.high > {builder.argument(within.now)}",
        *builder.arguments,
    )
    return {row["id"] for row in rows} | (set(patients) & set(viewer.own))
