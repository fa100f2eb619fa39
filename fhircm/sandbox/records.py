"""Real records as the charts of two EHRs: Bundles, one a line, optionally gzipped.

The hospital has every patient; every second one is at the clinic too, under another id. What such records lack for the story (team roles, goals,
orders, a stay that is under way) is added as the synthetic population has it. Only types that the vendors serve are kept.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import IO, Any

from fhircm.fhir.json import rewrite_references
from fhircm.sandbox.population import Population, group, organization_resources, story

Tree = dict[str, Any]
_KEPT = {"Patient", "Encounter", "Condition", "CarePlan", "CareTeam", "Goal", "Practitioner", "Organization", "Location"}


def from_bundles(path: Path, today: date) -> Population:
    """The charts of a file. Raises ValueError, with the line, for one that is neither a Bundle nor a resource."""
    charts = {"hospital": organization_resources("hospital"), "clinic": organization_resources("clinic")}
    panels: dict[str, list[str]] = {"hospital": [], "clinic": []}
    truth: dict[str, int] = {}
    for resource in _resources(path):
        charts["hospital"].append(resource)
        if resource["resourceType"] != "Patient":
            continue
        human = len(panels["hospital"])
        both = human % 2 == 0
        charts["hospital"] += _added(resource["id"], "lakeside", today, inpatient=human % 9 == 0)
        panels["hospital"].append(resource["id"])
        truth[resource["id"]] = human
        if both:
            id = f"rb-{resource['id']}"[:64]
            charts["clinic"] += [
                {**resource, "id": id, "identifier": _renumbered(resource, id)},
                *_added(id, "riverbend", today, inpatient=False),
            ]
            panels["clinic"].append(id)
            truth[id] = human
    for name, chart in charts.items():
        chart.append(group(panels[name]))
    return Population(charts["hospital"], charts["clinic"], truth)


def _resources(path: Path) -> Iterator[Tree]:
    """Each resource of a kept type once, with what it refers to by the names that it has here."""
    found: dict[tuple[str, str], Tree] = {}
    names: dict[str, str] = {}
    opened: IO[bytes] = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
    with opened as file:
        for number, line in enumerate(file, start=1):
            try:
                for full_url, resource in _entries(json.loads(line)):
                    type, id = resource["resourceType"], resource["id"]
                    names[full_url] = f"{type}/{id}"
                    if type in _KEPT:
                        found.setdefault((type, id), resource)
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"line {number} is neither a Bundle of resources with ids nor such a resource") from None
    for resource in found.values():
        yield json.loads(rewrite_references(json.dumps(resource).encode(), lambda old: names.get(old, old)))


def _entries(tree: Tree) -> Iterator[tuple[str, Tree]]:
    if tree["resourceType"] != "Bundle":
        yield "", tree
    for entry in tree.get("entry", []):
        yield entry["fullUrl"], entry["resource"]


def _added(id: str, own: str, today: date, *, inpatient: bool) -> list[Tree]:
    subject = {"reference": f"Patient/{id}"}
    return story(id, own, subject, ("38341003", "Hypertension"), today, inpatient=inpatient)


def _renumbered(patient: Tree, id: str) -> list[Tree]:
    """The identifiers that another EHR would have: its own record number instead of the hospital's."""
    kept = [
        one for one in patient.get("identifier", []) if one.get("type", {}).get("coding", [{}])[0].get("code") not in (None, "MR")
    ]
    return [*kept, {"system": "https://clinic.example/mrn", "value": id}]
