"""Differential probes: whatever somebody asks, the answer is that of a store which never held what is hidden from him.

For each of those who look, two stores: the whole population, asked by him; and only what he may see (the oracle says so), asked
by somebody with the same scopes who sees everything. Every form of question must bring the same, byte for byte but for page links and
the ids of requests. FHIRCM_PROBES=100 tries so many populations.
"""

import json
import os
from dataclasses import replace
from datetime import timedelta
from urllib.parse import quote

import pytest

from fhircm.jobs import JOBS
from fhircm.jobs.job import Means
from fhircm.jobs.running import run_jobs

from .conftest import BASE, GRACE_DAYS
from .oracle import Oracle
from .world import PATIENTS, SOMEBODY, admitted, world, write

POPULATIONS = int(os.environ.get("FHIRCM_PROBES", "2"))
TYPES = [
    "Patient",
    "RelatedPerson",
    "Encounter",
    "CareTeam",
    "Coverage",
    "Group",
    "Observation",
    "Condition",
    "MedicationRequest",
    "CarePlan",
    "ServiceRequest",
    "Task",
    "Communication",
    "Provenance",
    "List",
    "Consent",
    "Organization",
    "Practitioner",
    "PractitionerRole",
]

SEARCHES = [
    *(f"{type}?_total=accurate&_count=100" for type in TYPES),
    *(f"{type}?_summary=count" for type in TYPES),
    "Patient?_count=1",  # its pages are followed to the end
    "Patient?_sort=birthdate,-_id&_count=1",
    "Observation?_sort=-date&_count=2",
    "Observation?_sort=code&_count=3",
    "Patient?gender=female",
    "Patient?name=adams&_total=accurate",
    "Patient?identifier=urn:mrn|p1",
    "Patient?organization=Organization/hospital",
    "Patient?organization:missing=true",
    "Patient?organization.name=hospital",
    "Patient?general-practitioner.family=dr-clinic",
    "Patient?_has:Observation:patient:code=1",
    "Patient?_has:Observation:patient:_security=ETHUD",
    "Patient?_has:Condition:patient:code=a",
    "Patient?_has:Encounter:patient:_has:Observation:encounter:code=2",
    "Patient?_has:CareTeam:patient:participant=Organization/clinic",
    "Patient?_has:Consent:patient:status=active",
    "Patient?_has:Group:member:managing-entity=Organization/payer",
    "Patient?_filter=name sw brown or gender eq male",
    "Patient?_filter=not (gender eq male)",
    "Observation?subject:Patient.name=adams",
    "Observation?patient.birthdate=1950-01-01",
    "Observation?encounter.service-provider.name=hospital",
    "Observation?encounter.status=in-progress",
    "Observation?subject=Patient/p0,Patient/p1,Patient/p2,Patient/p3&encounter.status=in-progress,finished,planned,cancelled",
    "Condition?subject=Patient/p0,Patient/p1,Patient/p2,Patient/p3&_has:CarePlan:condition:status=active",
    "Communication?subject=Patient/p0,Patient/p1,Patient/p2,Patient/p3&about:Task.status=requested,accepted,completed",
    "Observation?category=laboratory&_total=accurate",
    "Observation?category:not=laboratory",
    "Observation?_security=PSY",
    "Observation?_security:not=PSY",
    "Observation?code-value-quantity=http://loinc.org|1$2",
    "Observation?value-quantity=gt1",
    "Observation?_filter=subject[name eq Adams].gender eq male",
    "Observation?subject=Patient/p0,Patient/p1,Patient/p2,Patient/p3",
    "Condition?_text=a",
    "Condition?_content=a",
    "Condition?_has:CarePlan:condition:status=active",
    "Condition?_has:Provenance:target:agent=Organization/hospital",
    "Condition?_list=list-1,list-2,unowned",
    "Encounter?_has:Observation:encounter:category=vital-signs",
    "Task?patient.name=adams",
    "Task?focus:ServiceRequest.performer=Organization/clinic",
    "Task?owner.name=clinic",
    "Group?member=Patient/p1",
    "Observation?_include=Observation:patient&_include=Observation:encounter",
    "Observation?_include=*",
    "Task?_include=Task:focus&_include:iterate=ServiceRequest:subject&_include:iterate=ServiceRequest:performer",
    "Patient?_revinclude=Observation:patient&_revinclude=Condition:patient",
    "Patient?_revinclude=*",
    "Patient?_revinclude=Provenance:target&_revinclude:iterate=Provenance:target&_revinclude=Consent:patient",
    "Organization?_revinclude=Encounter:service-provider&_revinclude=CareTeam:participant",
    "Organization?_has:Encounter:service-provider:status=finished",
    "Organization?_has:CareTeam:participant:patient.name=adams",
    "Practitioner?_has:Encounter:practitioner:status=in-progress",
    "?_type=Patient,Condition,Observation&_count=7",
    "Patient/p0/Observation",
    "Patient/p1/*?_count=200",
    "Patient/p2/Condition?code=a",
    "Observation?_elements=id&_count=100",
    "Condition/$meta",
    "$meta",
    "Organization/hospital/_history",
]
# What one who may not search a type gets is told by the names of scopes; these differ in their context.
OPERATIONS = [
    *(f"Patient/{id}/$everything?_count=200" for id in PATIENTS),
    "Patient/$everything?_count=300",
    "Group/nobody/$everything",
    "Task/$worklist?owner=Organization/clinic,Organization/hospital,Practitioner/dr-clinic,Practitioner/dr-hospital&_count=2",
    "Task/$worklist?organization=Organization/payer&_sort=risk",
]


def normal(answer):
    """What must be equal of an answer."""
    tree = json.loads(answer.content) if answer.content else None
    if isinstance(tree, dict):
        tree.pop("timestamp", None)
        tree["link"] = [one for one in tree.get("link", []) if one["relation"] != "next" and "_page" not in one["url"]]
        for entry in tree.get("entry", []):
            entry.get("search", {}).pop("extension", None)  # of a work list: why a line is there depends on who asks
            if "response" in entry and isinstance(entry.get("resource"), dict):
                entry["resource"].pop("link", None)
    headers = {
        name: value for name, value in answer.headers.items() if name in ("etag", "last-modified", "location", "retry-after")
    }
    return answer.status_code, headers, tree


class Asked:
    """One store and who asks it."""

    def __init__(self, http, token):
        self.http, self.headers = http, {"Authorization": f"Bearer {token}", "Content-Type": "application/fhir+json"}

    async def get(self, path, **headers):
        return await self.http.get(f"/fhir/{path}", headers=self.headers | headers)

    async def post(self, path, tree, **headers):
        return await self.http.post(f"/fhir/{path}", json=tree, headers=self.headers | headers)

    async def pages(self, path):
        """The answer, and those of the pages behind it."""
        answer = await self.get(path)
        yield normal(answer)
        while links := [
            one["url"] for one in (answer.json() if answer.content else {}).get("link", []) if one["relation"] == "next"
        ]:
            answer = await self.http.get(links[0], headers=self.headers)
            yield normal(answer)


async def differences(whole, part, paths):
    """The first difference of each path."""
    for path in paths:
        one, other = [page async for page in whole.pages(path)], [page async for page in part.pages(path)]
        if one != other:
            yield path, one, other


def lines(answer):
    return sorted(answer.text.splitlines())


async def exported(store, asked, path):
    """What the files of a bulk export hold, by type; or the refusal."""
    started = await asked.get(path, Prefer="respond-async")
    if started.status_code != 202:
        return started.status_code
    while await run_jobs(Means(store, f"{BASE}/fhir", 1.0, grace=timedelta(days=GRACE_DAYS)), JOBS, timedelta(seconds=15)):
        pass
    status = await asked.http.get(started.headers["Content-Location"], headers=asked.headers)
    files = status.json()["output"]
    return {file["type"]: lines(await asked.http.get(file["url"], headers=asked.headers)) for file in files}


def everybody(someone):
    """Somebody with the same scopes, and without any limit."""
    scope = "system/Observation.rs system/Patient.rs" if someone.name == "labs-only" else "system/*.rs"
    return replace(someone, scope=scope, user=None, roles=("custodian",), context={}, organization=None)


def comparable(someone, path):
    """What does not name scopes in its answer, which are worded by their context."""
    return someone.name != "labs-only" or path.startswith(("Patient", "Observation", "Organization"))


@pytest.mark.parametrize("seed", range(POPULATIONS))
@pytest.mark.parametrize("someone", SOMEBODY, ids=lambda one: one.name)
async def test_no_question_tells_of_what_is_hidden(opened, clock, someone, seed):
    population = world(100 + seed, clock.now)
    oracle = Oracle(population.resources, clock.now, timedelta(days=GRACE_DAYS))
    shown = [tree for tree in population.resources if oracle.within_scope(someone, tree) and oracle.sees(someone, tree)]
    hidden = [tree for tree in population.resources if tree not in shown]
    assert shown and hidden
    async with opened() as (store, http), opened() as (small, other):
        await write(store, population.resources)
        await write(small, shown, checked=False)
        whole = Asked(http, await admitted(store.database, someone))
        part = Asked(other, await admitted(small.database, everybody(someone)))
        reads = [f"{tree['resourceType']}/{tree['id']}" for tree in population.resources]
        paths = [
            *SEARCHES,
            *OPERATIONS,
            *reads,
            *(f"{one}/_history/1" for one in reads),
            *(f"{one}/_history" for one in reads[::3]),
            *(f"{type}/_history?_count=100" for type in TYPES[:8]),
            *(f"{type}?_id={tree['id']}" for tree in hidden[:10] for type in [tree["resourceType"]]),
            *(f"Provenance?target={tree['resourceType']}/{tree['id']}" for tree in hidden[:10]),
        ]
        found = [one async for one in differences(whole, part, [path for path in paths if comparable(someone, path)])]
        assert not found, found[0]
        assert await batches(whole, hidden) == await batches(part, hidden)
        assert await matches(whole) == await matches(part)
        if someone.name != "labs-only":
            kinds = ",".join(type for type in TYPES if type != "Task")  # an export is itself a Task
            for path in (f"$export?_type={kinds}", "Patient/$export?_type=Patient,Observation,Condition", "Group/nobody/$export"):
                assert await exported(store, whole, path) == await exported(small, part, path)


async def batches(asked, hidden):
    """The same questions as entries of a batch, with conditional headers."""
    urls = [f"{tree['resourceType']}/{tree['id']}" for tree in hidden[:15] if tree["resourceType"] in ("Patient", "Observation")]
    urls += [
        "Patient?name=adams",
        "Observation?category=laboratory&_include=Observation:patient",
        f"Patient?_filter={quote('gender eq male')}",
    ]
    entry = [{"request": {"method": "GET", "url": url, "ifNoneMatch": 'W/"1"'}} for url in urls]
    answer = await asked.post("", {"resourceType": "Bundle", "type": "batch", "entry": entry})
    return normal(answer)


async def matches(asked):
    """Whether $match finds who is hidden."""
    found = []
    for id in PATIENTS:
        person = {"resourceType": "Patient", "identifier": [{"system": "urn:mrn", "value": id}], "birthDate": "1950-01-01"}
        parameters = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": person}]}
        found.append(normal(await asked.post("Patient/$match", parameters)))
    return found
