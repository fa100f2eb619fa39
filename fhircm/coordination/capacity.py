"""Whether a service has room: HealthcareService with the capacity status of Gravity SDOH Clinical Care.

http://hl7.org/fhir/us/sdoh-clinicalcare (SDOHCC-ExtensionHealthcareServiceCapacityStatus)
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination.build import npi
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Record
from fhircm.store.resources import Stored

Tree = dict[str, Any]
URL = "http://hl7.org/fhir/us/sdoh-clinicalcare/StructureDefinition/SDOHCC-ExtensionHealthcareServiceCapacityStatus"
SYSTEM = "http://hl7.org/fhir/us/sdoh-clinicalcare/CodeSystem/SDOHCC-CodeSystemTemporaryCodes"
# As Gravity 3.0.0 has them; the last is how its drafts called a waiting list.
_CODES = {"capacity": "capacity", "no-capacity": "no-capacity", "waitlist": "waitlist"} | {
    "additional-assessment-required": "additional-assessment-required",
    "no-capacity-has-waitlist": "waitlist",
}


def capacity(service: Tree) -> str | None:
    """The capacity status that a service tells; None when it tells none that is known."""
    told = [one for one in service.get("extension", []) if one.get("url") == URL]
    parts = [part for one in told for part in one.get("extension", []) if part.get("url") == "capacityStatus"]
    found = (
        code
        for system, code in codings([part.get("valueCodeableConcept") or part.get("valueCoding") for part in parts])
        if system == SYSTEM
    )
    return next((_CODES[code] for code in found if code in _CODES), None)


async def asked_service(record: Record, order: Tree | None, task: Tree) -> Stored | None:
    """The HealthcareService to which a referral to its organisation (or to itself) is addressed; None when none is named."""
    owner = await record.follow(task.get("owner"))
    if owner is not None and owner.type == "HealthcareService":
        return owner
    for element in (order or {}).get("performer", []):
        found = await record.follow(element)
        if found is not None and found.type == "HealthcareService":
            organization = await record.follow(found.tree.get("providedBy"))
            if organization is not None and owner is not None and _same(organization, owner):
                return found
    return None


def _same(one: Stored, other: Stored) -> bool:
    return one.id == other.id or (npi(one.tree) is not None and npi(one.tree) == npi(other.tree))
