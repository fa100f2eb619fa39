"""The fixed workloads: what an app, a work list and an interface engine ask a care coordination server, again and again."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.population import MRN, Records, bundle

Request = tuple[str, str, str, bytes]  # method, path, header lines, body
JSON = "Content-Type: application/fhir+json\r\n"


@dataclass
class Known:
    """What was loaded: ids by type, and how many patients."""

    ids: dict[str, list[str]]
    staff: list[str]
    patients: int
    random: random.Random = field(default_factory=lambda: random.Random(1))
    made: int = 0

    def some(self, type: str) -> str:
        return self.random.choice(self.ids[type])

    def number(self) -> int:
        self.made += 1
        return self.made


def _get(path: Callable[[Known], str]) -> Callable[[Known], Request]:
    return lambda known: ("GET", path(known), "", b"")


def _create(known: Known) -> Request:
    tree = Records(known.number()).patient(known.number() + 10**7, known.staff)[0][1]
    return "POST", "/Patient", JSON, json.dumps(tree).encode()


def _update(known: Known) -> Request:
    id = known.some("Goal")
    tree: dict[str, Any] = {
        "resourceType": "Goal",
        "id": id,
        "lifecycleStatus": "active",
        "description": {"text": f"Goal {known.number()}"},
    }
    tree["subject"] = {"reference": f"Patient/{known.some('Patient')}"}
    return "PUT", f"/Goal/{id}", JSON, json.dumps(tree).encode()


def _bundle_of(size: int) -> Callable[[Known], Request]:
    def make(known: Known) -> Request:
        records, resources = Records(known.number() + 10**6), []
        while len(resources) < size:
            resources += records.patient(known.number() + 10**7, known.staff)
        return "POST", "", JSON, bundle(resources[:size])

    return make


def _contended(known: Known) -> Request:
    value = f"c{known.number() // 8}"  # eight clients want the same one
    tree = {"resourceType": "Patient", "identifier": [{"system": MRN, "value": value}]}
    condition = f"If-None-Exist: identifier={MRN}|{value}\r\n"
    return "POST", "/Patient", JSON + condition, json.dumps(tree).encode()


def _mixed(known: Known) -> Request:
    drawn = known.random.random()
    if drawn < 0.6:
        return WORKLOADS["read"](known)
    if drawn < 0.85:
        return WORKLOADS["patient's active plans"](known)
    return _create(known) if drawn < 0.93 else _update(known)


WORKLOADS: dict[str, Callable[[Known], Request]] = {
    "read": _get(lambda known: f"/CarePlan/{known.some('CarePlan')}"),
    "patient's active plans": _get(lambda known: f"/CarePlan?patient={known.some('Patient')}&status=active&category=assess-plan"),
    "patient's teams": _get(lambda known: f"/CareTeam?patient={known.some('Patient')}&status=active"),
    "patient's goals": _get(lambda known: f"/Goal?patient={known.some('Patient')}&lifecycle-status=active"),
    "work list": _get(
        lambda known: f"/Task?owner={known.random.choice(known.staff[1:])}&status=requested,ready&_sort=period&_count=20"
    ),
    "referrals by requester": _get(
        lambda known: f"/ServiceRequest?requester={known.random.choice(known.staff[1:])}&status=active&_count=20"
    ),
    "chained": _get(
        lambda known: f"/CarePlan?patient.identifier={quote(MRN + '|m' + str(known.random.randrange(known.patients)))}"
    ),
    "_has": _get(
        lambda known: f"/Patient?_has:Task:patient:owner={known.random.choice(known.staff[1:])}&birthdate=lt1950&_count=20"
    ),
    "include": _get(
        lambda known: f"/Task?owner={known.random.choice(known.staff[1:])}&_include=Task:focus&_include=Task:patient&_count=20"
    ),
    "revinclude": _get(
        lambda known: f"/Patient?_id={known.some('Patient')}&_revinclude=CarePlan:patient&_revinclude=Goal:patient"
    ),
    "date range": _get(lambda known: f"/Encounter?patient={known.some('Patient')}&date=ge2026-01-01&date=lt2027-01-01"),
    "identifier": _get(lambda known: f"/Patient?identifier={quote(MRN + '|m' + str(known.random.randrange(known.patients)))}"),
    "count": _get(lambda known: f"/Observation?patient={known.some('Patient')}&_summary=count"),
    "everything": _get(lambda known: f"/Patient/{known.some('Patient')}/$everything"),
    "newest 20": _get(lambda known: "/Observation?status=final&_count=20"),
    "create": _create,
    "update": _update,
    "transaction of 10": _bundle_of(10),
    "transaction of 50": _bundle_of(50),
    "conditional create, contended": _contended,
    "mixed": _mixed,
}

_REAL = Path(os.environ.get("FHIRCM_DATA", "")) / "synthea-100.ndjson.gz"
if os.environ.get("FHIRCM_DATA"):  # a folder with records of Synthea, a Bundle a line: one of middling size, again and again

    @cache
    def _whole_patient() -> bytes:
        with gzip.open(_REAL) as lines:
            listed = sorted(lines, key=len)
        return listed[len(listed) // 2]

    WORKLOADS["transaction of a whole patient"] = lambda known: ("POST", "", JSON, _whole_patient())
