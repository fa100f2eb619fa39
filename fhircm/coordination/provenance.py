"""Who did what: one Provenance for each version that the hub or a client of it wrote.

https://hl7.org/fhir/R4/provenance.html. What was pulled from a partner has its Provenance from the pull. The id follows from
the version, so a replay writes nothing twice.
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination.build import instant, new, reference, stable_id
from fhircm.coordination.codes import CLIENT
from fhircm.coordination.context import Context
from fhircm.coordination.people import patient_of
from fhircm.coordination.wording import told
from fhircm.fhir.outcome import Gone, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Change, Op

Tree = dict[str, Any]
_ACTIVITY = {"create": "CREATE", "update": "UPDATE", "delete": "DELETE"}


async def record(context: Context, change: Change) -> list[Op]:
    """Reaction to what is coordinated: write who made this version, and what it changed."""
    if change.origin != "hub" and not change.origin.startswith("client:"):
        return []
    id = stable_id("provenance", change.type, change.id, str(change.version))
    if await context.get("Provenance", id) is not None:
        return []
    before, after = await _version(context, change, change.version - 1), await _version(context, change, change.version)
    tree = after or before
    return [
        new(
            {
                "resourceType": "Provenance",
                "id": id,
                "target": await _targets(context, change, tree),
                "occurredDateTime": instant(change.at),
                "recorded": instant(context.now()),
                "activity": {
                    "coding": [
                        {"system": "http://terminology.hl7.org/CodeSystem/v3-DataOperation", "code": _ACTIVITY[change.method]}
                    ],
                    "text": told(change.type, before if change.method == "update" else None, after),
                },
                "agent": [_agent(context, change.origin)],
            }
        )
    ]


async def _version(context: Context, change: Change, version: int) -> Tree | None:
    try:
        return (await context.store.vread(change.type, change.id, version)).tree
    except (NotFound, Gone):
        return None


async def _targets(context: Context, change: Change, tree: Tree | None) -> list[Tree]:
    """The version, and the Patients whom it is about."""
    targets = [reference(f"{change.type}/{change.id}/_history/{change.version}")]
    patients = _patients(tree or {})
    known = await context.store.read_many([("Patient", id) for id in patients])
    return [*targets, *(reference(f"Patient/{id}") for id in patients if ("Patient", id) in known)]


def _patients(tree: Tree) -> list[str]:
    if tree.get("resourceType") == "Person":
        targets = (parse_reference(link["target"].get("reference", "")) for link in tree.get("link", []))
        return sorted({to.id for to in targets if to.kind == "local" and to.type == "Patient" and to.id})
    patient = patient_of(tree)
    return [patient] if patient else []


def _agent(context: Context, origin: str) -> Tree:
    kind = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
    if origin == "hub":
        return {"type": {"coding": [{"system": kind, "code": "assembler"}]}, "who": context.coordinator}
    client = origin.removeprefix("client:")
    who = {"identifier": {"system": CLIENT, "value": client}, "display": client}
    return {"type": {"coding": [{"system": kind, "code": "author"}]}, "who": who}
