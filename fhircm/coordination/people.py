"""Who is who: the records of one human, and who holds a role for them.

https://hl7.org/fhir/R4/person.html, https://hl7.org/fhir/R4/careteam.html
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.build import npi, reference
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Context, Record, any_of, token
from fhircm.coordination.times import moment
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import LONGITUDINAL
from fhircm.store.resources import Stored

Tree = dict[str, Any]


async def linked(record: Record, patient: str) -> list[str]:
    """The ids of all Patients that are the same human as this one: itself first, then those of its Person."""
    others: set[str] = set()
    for person in await record.find("Person", ("patient", f"Patient/{patient}")):
        if person.tree.get("active") is not False:
            targets = (parse_reference(link["target"].get("reference", "")) for link in person.tree.get("link", []))
            others |= {to.id for to in targets if to.kind == "local" and to.type == "Patient" and to.id}
    return [patient, *sorted(others - {patient})]


def patient_of(tree: Tree) -> str | None:
    """The id of the Patient whom a resource is about, if it is one of this server."""
    for name in ("subject", "patient", "for"):
        to = parse_reference((tree.get(name) or {}).get("reference", ""))
        if to.kind == "local" and to.type == "Patient":
            return to.id
    actors = (parse_reference((one.get("actor") or {}).get("reference", "")) for one in tree.get("participant", []))
    return next((to.id for to in actors if to.kind == "local" and to.type == "Patient"), None)  # an Appointment


def patients_value(ids: list[str]) -> tuple[str, str]:
    """The search parameter `patient` for any of these."""
    return "patient", any_of(f"Patient/{id}" for id in ids)


async def deceased(record: Record, patients: list[str]) -> bool:
    """Whether any record of this human says that they died."""
    found = await record.store.read_many([("Patient", id) for id in patients])
    trees = (stored.tree for stored in found.values())
    return any(tree.get("deceasedBoolean") is True or "deceasedDateTime" in tree for tree in trees)


async def in_role(context: Context, role: Tree, patients: list[str], organization: Stored | None) -> Tree | None:
    """A Reference to who has a role for this human: from an active CareTeam, else by PractitionerRole at the organisation.

    The first record's own team goes before those of the records that are linked to it, and these before the one that the hub makes out of all.
    """
    wanted = set(codings(role))
    teams = await context.find("CareTeam", patients_value(patients), ("status", "active")) if patients else []
    for team in sorted(teams, key=lambda team: (is_made(team.tree), patient_of(team.tree) != patients[0], team.id)):
        for participant in team.tree.get("participant", []):
            if wanted & set(codings(participant.get("role", []))) and current(participant, context.now()):
                who = await context.follow(participant.get("member"))
                if who is not None and who.type != "Patient":
                    return await named(context, who)
    if organization is not None and wanted:
        at = ("organization", f"Organization/{organization.id}")
        role_codes = ("role", any_of(token(*one) for one in sorted(wanted)))
        for who in await context.find("PractitionerRole", at, role_codes):
            if who.tree.get("active") is not False and current(who.tree, context.now()):
                return await named(context, who)
    return None


def is_made(team: Tree) -> bool:
    """Whether the hub made it out of what all partners say."""
    return any(one.get("system") == LONGITUDINAL for one in team.get("identifier", []))


def current(tree: Tree, now: datetime) -> bool:
    """Whether the period of an element has not ended."""
    end = moment(tree.get("period", {}).get("end"))
    return end is None or end > now


async def named(record: Record, stored: Stored) -> Tree:
    """A Reference with the name by which people know it."""
    return reference(f"{stored.type}/{stored.id}", await name_of(record, stored))


async def name_of(record: Record, stored: Stored) -> str | None:
    """The name of a person, organisation or role."""
    tree = stored.tree
    if stored.type == "PractitionerRole":
        who = await record.follow(tree.get("practitioner"))
        name = await name_of(record, who) if who else tree.get("practitioner", {}).get("display")
        titles = [
            role.get("text") or next((one.get("display") for one in role.get("coding", [])), None)
            for role in tree.get("code", [])
        ]
        title = next(filter(None, titles), None)
        return f"{name}, {title}" if name and title else name or title
    name = tree.get("name")
    if isinstance(name, str):
        return name
    first = next((one for one in name or [] if one.get("use") != "old"), None)
    if first is None:
        return None
    parts = [*first.get("prefix", []), *first.get("given", []), first.get("family"), *first.get("suffix", [])]
    return first.get("text") or " ".join(part for part in parts if part) or None


async def organization_of(record: Record, element: Tree | None) -> Stored | None:
    """The Organization behind a Reference: itself, or that of a PractitionerRole or HealthcareService."""
    found = await record.follow(element)
    return await belonging_to(record, found) if found else None


async def belonging_to(record: Record, found: Stored) -> Stored | None:
    """The Organization to which what was found belongs: see organization_of."""
    if found.type == "Organization":
        return found
    for name in ("organization", "providedBy"):
        organization = await record.follow(found.tree.get(name))
        if organization is not None and organization.type == "Organization":
            return organization
    return None


def same_organization(one: Stored, other: Stored | None) -> bool:
    """Whether two entries are of one organisation."""
    if other is None:
        return False
    number = npi(one.tree)
    return one.id == other.id or (number is not None and number == npi(other.tree))
