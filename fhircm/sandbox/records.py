"""Real records as the charts of two EHRs: Bundles, one a line, optionally gzipped.

The hospital has every patient; every second one is at the clinic too, under another id. What such records lack for the story (team roles, goals,
orders, a stay that is under way) is added as the synthetic population has it. Only types that the vendors serve are kept.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import IO, Any

from fhircm.fhir.json import rewrite_references
from fhircm.sandbox.population import Population, group, organization_resources, story

Tree = dict[str, Any]
_KEPT = {"Patient", "Encounter", "Condition", "CarePlan", "CareTeam", "Goal", "Practitioner", "Organization", "Location"}


def from_bundles(path: Path) -> Population:
    """The charts of a file. Raises ValueError, with the line, for one that is no Bundle."""
    charts = {"hospital": organization_resources("hospital"), "clinic": organization_resources("clinic")}
    panels: dict[str, list[str]] = {"hospital": [], "clinic": []}
    truth: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    opened: IO[bytes] = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
    with opened as file:
        for number, line in enumerate(file, start=1):
            resources = _resources(line, number)
            patient = next((one for one in resources if one["resourceType"] == "Patient"), None)
            fresh = [one for one in resources if (one["resourceType"], one["id"]) not in seen]
            seen |= {(one["resourceType"], one["id"]) for one in fresh}
            charts["hospital"] += fresh
            if patient is None:
                continue
            human = len(panels["hospital"])
            both = human % 2 == 0
            charts["hospital"] += _added(patient["id"], "lakeside", inpatient=human % 9 == 0, known=both)
            panels["hospital"].append(patient["id"])
            truth[patient["id"]] = human
            if both:
                id = f"rb-{patient['id']}"[:64]
                charts["clinic"] += [
                    {**patient, "id": id, "identifier": _renumbered(patient, id)},
                    *_added(id, "riverbend", inpatient=False, known=True),
                ]
                panels["clinic"].append(id)
                truth[id] = human
    for name, chart in charts.items():
        chart.append(group(panels[name]))
    return Population(charts["hospital"], charts["clinic"], truth)


def _resources(line: bytes, number: int) -> list[Tree]:
    try:
        bundle = json.loads(line)
        entries = [entry for entry in bundle["entry"] if entry["resource"]["resourceType"] in _KEPT]
        known = {entry["fullUrl"]: f"{entry['resource']['resourceType']}/{entry['resource']['id']}" for entry in bundle["entry"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"line {number} is not a Bundle of resources with ids") from None
    return [
        json.loads(rewrite_references(json.dumps(entry["resource"]).encode(), lambda old: known.get(old, old)))
        for entry in entries
    ]


def _added(id: str, own: str, *, inpatient: bool, known: bool) -> list[Tree]:
    subject = {"reference": f"Patient/{id}"}
    return story(id, own, subject, ("38341003", "Hypertension"), inpatient=inpatient, known=known)


def _renumbered(patient: Tree, id: str) -> list[Tree]:
    """The identifiers that another EHR would have: its own record number instead of the hospital's."""
    kept = [
        one for one in patient.get("identifier", []) if one.get("type", {}).get("coding", [{}])[0].get("code") not in (None, "MR")
    ]
    return [*kept, {"system": "https://clinic.example/mrn", "value": id}]
