"""What the longitudinal plan of a person costs: `python -m benchmarks.longitudinal > longitudinal.json`.

Persons with three partners and forty resources at each, on SQLite. Milliseconds for each person: the first plan with its commit, and the plan
when nothing changed (which must write nothing); beside it, in the same run, the plain reading of the same resources. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from benchmarks.run import machine
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.longitudinal.follow import made_anew
from fhircm.coordination.longitudinal.sources import TYPES
from fhircm.coordination.people import patients_value
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Put, Store

Tree = dict[str, Any]
PARTNERS, CONDITIONS, GOALS, ORDERS = 3, 20, 10, 8  # and one plan and one team: forty resources at each partner
_SCT = "http://snomed.info/sct"


def _concept(code: str) -> Tree:
    return {"coding": [{"system": _SCT, "code": code}], "text": f"What {code} stands for"}


def person(number: int) -> list[Tree]:
    """One human at each partner: two thirds of what they say is the same elsewhere."""
    trees: list[Tree] = []
    patients = [f"p{number}-{at}" for at in range(PARTNERS)]
    for at, id in enumerate(patients):
        subject = {"reference": f"Patient/{id}"}

        def coded(kind: str, index: int, at: int = at) -> Tree:
            return _concept(f"{kind}{index}" if index % 3 else f"{kind}{index}-{at}")

        trees.append({"resourceType": "Patient", "id": id, "name": [{"family": f"Family {number}"}]})
        trees += [
            {"resourceType": "Condition", "id": f"{id}-c{one}", "code": coded("1", one), "subject": subject}
            for one in range(CONDITIONS)
        ]
        trees += [
            {"resourceType": "Goal", "id": f"{id}-g{one}", "lifecycleStatus": "active", "description": coded("2", one)}
            | {"subject": subject, "target": [{"dueDate": f"2026-0{at + 1}-01"}]}
            for one in range(GOALS)
        ]
        order = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "authoredOn": "2026-01-02"}
        trees += [{**order, "id": f"{id}-s{one}", "code": coded("3", one), "subject": subject} for one in range(ORDERS)]
        doctor = {"role": [_concept("446050000")], "member": {"reference": f"Patient/{id}"}}
        trees.append(
            {"resourceType": "CareTeam", "id": f"{id}-t", "status": "active", "subject": subject, "participant": [doctor]}
        )
        activities = [{"reference": {"reference": f"ServiceRequest/{id}-s{one}"}} for one in range(ORDERS)]
        plan = {"resourceType": "CarePlan", "id": f"{id}-cp", "status": "active", "intent": "plan"}
        trees.append({**plan, "subject": subject, "activity": activities})
    links = [{"target": {"reference": f"Patient/{id}"}} for id in patients]
    return [*trees, {"resourceType": "Person", "id": f"person{number}", "active": True, "link": links}]


async def measured(persons: int) -> Tree:
    """The figures."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'hub.db'}"
        await migrate(url)
        store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
        coordinating = coordinating_organization("Benchmark")
        await store.transact([Put(coordinating)], origin="hub")
        context = Context(store, coordinating.id or "", "Benchmark", BusinessCalendar("UTC", "US"))
        for number in range(persons):
            await store.transact([Put(check_tree(tree)) for tree in person(number)], origin="load")
        first: list[float] = []
        again: list[float] = []
        reading: list[float] = []
        written, unchanged = 0, 0
        for number in range(persons):
            started = perf_counter()
            operations = await made_anew(context, f"p{number}-0")
            await store.transact(operations, origin="hub")
            first.append(perf_counter() - started)
            written += len(operations)
        for number in range(persons):
            started = perf_counter()
            unchanged += len(await made_anew(context, f"p{number}-0"))
            again.append(perf_counter() - started)
            ids = [f"p{number}-{at}" for at in range(PARTNERS)]
            started = perf_counter()
            for type in TYPES:
                [one.tree for one in await context.find(type, patients_value(ids))]
            reading.append(perf_counter() - started)
        await store.close()
    return {
        "persons": persons,
        "resources of a person": PARTNERS * (CONDITIONS + GOALS + ORDERS + 2),
        "first plan, ms": _spread(first),
        "unchanged, ms": _spread(again),
        "plain reading, ms": _spread(reading),
        "unchanged / plain reading": round(median(again) / median(reading), 2),
        "resources written by the first plan": written / persons,
        "resources written when nothing changed": unchanged,
    }


def _spread(seconds: list[float]) -> Tree:
    return {"p50": round(median(seconds) * 1000, 1), "p99": round(quantiles(seconds, n=100)[98] * 1000, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--persons", type=int, default=100)
    arguments = parser.parse_args()
    json.dump({"machine": machine(), **asyncio.run(measured(arguments.persons))}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
