"""Who carries how much, and who is to have a Task of a role queue: by capacity, skill, who cares for the patient already, and load.

https://hl7.org/fhir/R4/practitionerrole.html, https://hl7.org/fhir/R4/task.html. What work weighs is data:
profiles/caseload/weights.yaml. The choice is the same whenever the same things are there, and says why.
docs/explanation/claims-and-caseload.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhircm.coordination.away import away_until
from fhircm.coordination.build import reference
from fhircm.coordination.claims import organizations, queue_roles
from fhircm.coordination.codes import BASE, codings
from fhircm.coordination.context import Record, any_of, token
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.people import linked, name_of, patient_of
from fhircm.coordination.task_states import machine
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.query import MAX_COUNT, Query, parse_query
from fhircm.fhir.systems import ROLE
from fhircm.store.operations import Op, Plan
from fhircm.store.resources import Stored

Tree = dict[str, Any]
CAPACITY = f"{BASE}/StructureDefinition/caseload-capacity"
OPEN = tuple(sorted(set(machine("Task").next) - machine("Task").terminal))


@dataclass(frozen=True, slots=True)
class Worker:
    """Somebody in a role at an organisation. `names` are all references by which a Task may name them."""

    who: Tree
    names: tuple[str, ...]
    capacity: int
    specialties: frozenset[tuple[str, str]]
    languages: frozenset[str]
    services: frozenset[str]
    away: str | None  # until which day


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Task asks of who does it."""

    task: str
    points: int
    specialties: frozenset[tuple[str, str]]
    services: frozenset[str]
    languages: frozenset[str]
    patients: frozenset[str]
    carers: frozenset[str]  # references of those who care for the patient


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to have it, and why in words."""

    worker: Worker
    why: str


@dataclass(frozen=True, slots=True)
class Load:
    """How much somebody carries."""

    worker: Worker
    tasks: int
    points: int


@cache
def weights() -> dict[str, Any]:
    """profiles/caseload/weights.yaml."""
    tree: dict[str, Any] = read_yaml(folder("profiles") / "caseload" / "weights.yaml")
    return tree


def points(task: Tree, risk: str | None) -> int:
    """What a Task weighs."""
    table = weights()
    return int(table["priority"][task.get("priority", "routine")]) * int(table["risk"].get(risk, 1))


async def workers(
    record: Record, roles: Iterable[str], organization: str, calendar: BusinessCalendar | None = None
) -> list[Worker]:
    """Those who have one of the roles at an organisation (a reference), by reference. `calendar`: of the days of absences, else UTC."""
    asked = ("role", any_of(token(ROLE, code) for code in sorted(roles)))
    found = await record.find("PractitionerRole", ("organization", organization), asked, ("active:not", "false"))
    by_person: dict[str, list[Stored]] = {}
    for one in found:
        person = one.tree.get("practitioner", {}).get("reference") or f"PractitionerRole/{one.id}"
        by_person.setdefault(person, []).append(one)
    return [await _worker(record, person, listed, calendar) for person, listed in sorted(by_person.items())]


async def _worker(record: Record, person: str, roles: Sequence[Stored], calendar: BusinessCalendar | None) -> Worker:
    who = await record.follow(reference(person))
    elsewhere = await record.find("PractitionerRole", ("practitioner", person)) if who and who.type == "Practitioner" else []
    trees = [one.tree for one in roles]
    absences = [away_until(tree, record.store.clock(), calendar) for tree in trees]
    return Worker(
        reference(person, await name_of(record, who) if who else None),
        tuple(sorted({person, *(f"PractitionerRole/{one.id}" for one in (*roles, *elsewhere))})),
        sum(_capacity(tree) for tree in trees),
        frozenset(codings(*(tree.get("specialty", []) for tree in trees))),
        frozenset(code.split("-")[0] for _, code in codings((who.tree if who else {}).get("communication", []))),
        frozenset(one["reference"] for tree in trees for one in tree.get("healthcareService", []) if "reference" in one),
        max(filter(None, absences)) if all(absences) else None,
    )


def _capacity(role: Tree) -> int:
    said = next((one.get("valueUnsignedInt") for one in role.get("extension", []) if one["url"] == CAPACITY), None)
    return int(weights()["capacity"]) if said is None else int(said)


def _owned(worker: Worker) -> list[tuple[str, str]]:
    return [("owner", any_of(worker.names)), ("status", any_of(OPEN))]


def open_tasks(worker: Worker) -> Query:
    """The search for what somebody works on. Equal ones wait for each other in a Plan: so nobody is counted twice at once."""
    return parse_query("Task", [*_owned(worker), ("_count", str(MAX_COUNT))])


async def loads(record: Record, roles: Iterable[str], organization: str) -> list[Load]:
    """What everybody in these roles at an organisation (a reference) carries, the least loaded first."""
    listed = await workers(record, roles, organization)
    tasks = [[one.tree for one in await record.find("Task", *_owned(worker))] for worker in listed]
    risk = await risks(record, (id for some in tasks for tree in some if (id := patient_of(tree))))
    weighed = [
        Load(worker, len(some), sum(points(tree, risk.get(patient_of(tree) or "")) for tree in some))
        for worker, some in zip(listed, tasks, strict=True)
    ]
    return sorted(weighed, key=lambda one: (one.points / max(1, one.worker.capacity), one.worker.who["reference"]))


async def risks(record: Record, patients: Iterable[str]) -> dict[str, str]:
    """The level of risk of patients, as their newest RiskAssessment with a level says."""
    found: dict[str, tuple[str, str]] = {}
    wanted = sorted(set(patients))
    if wanted:
        for one in await record.find("RiskAssessment", ("subject", any_of(f"Patient/{id}" for id in wanted))):
            patient, when = patient_of(one.tree), str(one.tree.get("occurrenceDateTime", ""))
            levels = [code for _, code in codings(*(p.get("qualitativeRisk") for p in one.tree.get("prediction", [])))]
            level = next((code for code in levels if code in weights()["risk"]), None)
            if patient and level and when >= found.get(patient, ("", ""))[0]:
                found[patient] = when, level
    return {patient: level for patient, (_, level) in found.items()}


async def wanted(record: Record, stored: Stored, risk: Mapping[str, str]) -> Wanted:
    """What a Task asks of who does it: the codes of its performerType that are no roles, its HealthcareService, the patient's language."""
    tree = stored.tree
    patient = patient_of(tree)
    patients = await linked(record, patient) if patient else []
    found = await record.store.read_many([("Patient", id) for id in patients])
    spoken = [one for patient in found.values() for one in patient.tree.get("communication", [])]
    preferred = [one for one in spoken if one.get("preferred")] or spoken
    teams = await record.find("CareTeam", ("patient", any_of(patients)), ("status", "active")) if patients else []
    members = [one.get("member", {}).get("reference") for team in teams for one in team.tree.get("participant", [])]
    return Wanted(
        stored.id,
        points(tree, max((risk[id] for id in patients if id in risk), key=lambda level: weights()["risk"][level], default=None)),
        frozenset(one for one in codings(tree.get("performerType")) if one[0] != ROLE),
        frozenset(one["reference"] for one in organizations(tree) if "HealthcareService/" in one.get("reference", "")),
        frozenset(code.split("-")[0] for _, code in codings(*(one.get("language") for one in preferred))),
        frozenset(patients),
        frozenset(filter(None, members)),
    )


def choose(task: Wanted, loads: Sequence[tuple[Worker, Sequence[Tree]]], risk: Mapping[str, str]) -> Choice | None:
    """Who is to have it: of those who are there, have the skill and the room, one who cares for the patient, else the least loaded."""
    ways = []
    for worker, tasks in loads:
        others = [one for one in tasks if one["id"] != task.task]
        load = sum(points(one, risk.get(patient_of(one) or "")) for one in others)
        if worker.away or load + task.points > worker.capacity or not task.services <= worker.services:
            continue
        if task.specialties and not task.specialties & worker.specialties:
            continue
        speaks = bool(task.languages & worker.languages)
        cares = bool(task.carers.intersection(worker.names)) or any(patient_of(one) in task.patients for one in others)
        ways.append(
            ((not speaks and bool(task.languages), not cares, load / worker.capacity, load, worker.who["reference"]), worker)
        )
    if not ways:
        return None
    (foreign, strange, *_, load, _), worker = min(ways, key=lambda way: way[0])
    facts = [f"{load + task.points} of {worker.capacity} points with this one"]
    facts += ["has the specialty that is asked for"] if task.specialties else []
    facts += ["speaks the patient's language"] if task.languages and not foreign else []
    facts += ["cares for the patient already"] if not strange else []
    facts += [f"one of {len(ways)} of {len(loads)} who could have it"]
    return Choice(worker, f"Assigned to {worker.who.get('display') or worker.who['reference']}: {', '.join(facts)}")


async def assignment(
    record: Record, stored: Stored, make: Callable[[Choice | None], Sequence[Op]], calendar: BusinessCalendar | None = None
) -> Plan:
    """A plan that chooses who is to have a Task of a role queue, under a lock on the work of everybody who could: nobody is overfilled."""
    places = [one["reference"] for one in organizations(stored.tree) if "Organization/" in one.get("reference", "")]
    found = [await workers(record, queue_roles(stored.tree), place, calendar) for place in places]
    people = sorted({one.who["reference"]: one for listed in found for one in listed}.items())
    listed = [one for _, one in people]
    searches = [open_tasks(one) for one in listed]
    before = [task.tree for search in searches for task in (await record.store.search(search)).matches]
    patients = [id for tree in (*before, stored.tree) if (id := patient_of(tree))]
    risk = await risks(record, patients)
    task = await wanted(record, stored, risk)

    def decided(matches: list[list[Stored]]) -> Sequence[Op]:
        loads = [(worker, [one.tree for one in tasks]) for worker, tasks in zip(listed, matches, strict=True)]
        return make(choose(task, loads, risk))

    return Plan(searches, decided)
