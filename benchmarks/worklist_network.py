"""A network with a million open Tasks, for benchmarks/worklist.py: a thousand people in fifty organisations, each patient with a care team.

The rows are written straight into the tables: through the store it takes five times as long, and makes the same.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import perf_counter
from typing import Any

from fhircm.fhir.systems import ROLE
from fhircm.store.database import Database, open_database
from fhircm.store.migrations import migrate
from fhircm.store.search_rows import insert_statement, search_rows
from fhircm.store.stored import instant, micros

ORGANIZATIONS, PEOPLE = 50, 1000
ROLES = ("nurse", "social-worker", "care-coordinator")
PROBABILITY = "http://terminology.hl7.org/CodeSystem/risk-probability"
OF_A_PATIENT = 10  # Tasks
_AT_ONCE = 200  # patients in one transaction
_COLUMNS = {
    "resource": "key, type, id, version, last_updated, deleted",
    "version": "resource_key, version, method, last_updated, body",
    "change": "tx, type, id, version, method, origin, at",
}
_NOW = datetime.now(UTC)
Tree = dict[str, Any]


def _ref(to: str) -> Tree:
    return {"reference": to}


def person(number: int) -> tuple[str, str, str]:
    """A person, their organisation and their role."""
    return f"Practitioner/u{number}", f"Organization/o{number % ORGANIZATIONS}", ROLES[number // ORGANIZATIONS % len(ROLES)]


def directory() -> Iterator[Tree]:
    """The organisations and the people."""
    for number in range(ORGANIZATIONS):
        yield {"resourceType": "Organization", "id": f"o{number}", "name": f"Organisation {number}"}
    for number in range(PEOPLE):
        yield {"resourceType": "Practitioner", "id": f"u{number}", "name": [{"family": f"Person {number}"}]}


def record(number: int) -> Iterator[Tree]:
    """A patient: the team, a risk for one in three, and the Tasks: six in ten somebody's own, the others in the queue of a role."""
    draw, patient = random.Random(number), f"Patient/p{number}"
    home = number % ORGANIZATIONS
    yield {
        "resourceType": "Patient",
        "id": f"p{number}",
        "name": [{"family": f"Family {number % 977}", "given": [f"Given {number % 83}"]}],
    }
    yield {
        "resourceType": "CareTeam",
        "id": f"t{number}",
        "status": "active",
        "subject": _ref(patient),
        "participant": [{"member": _ref(f"Organization/o{home}")}],
    }
    if draw.random() < 0.33:
        level = draw.choice(("low", "low", "moderate", "high"))
        yield {
            "resourceType": "RiskAssessment",
            "id": f"r{number}",
            "status": "final",
            "subject": _ref(patient),
            "occurrenceDateTime": f"2026-0{draw.randrange(1, 10)}-11",
            "prediction": [{"qualitativeRisk": {"coding": [{"system": PROBABILITY, "code": level}]}}],
        }
    for at in range(OF_A_PATIENT):
        own = draw.random() < 0.6
        owner = (
            f"Practitioner/u{home + ORGANIZATIONS * draw.randrange(PEOPLE // ORGANIZATIONS)}" if own else f"Organization/o{home}"
        )
        due = _NOW + timedelta(minutes=draw.randrange(-10_000, 60_000))
        yield {
            "resourceType": "Task",
            "id": f"k{number}-{at}",
            "status": draw.choice(("requested", "accepted", "in-progress")),
            "intent": "order",
            "priority": draw.choice(("routine", "routine", "routine", "urgent", "asap", "stat")),
            "code": {"coding": [{"system": "https://benchmark.example/task", "code": f"c{at}", "display": f"Step {at}"}]},
            "description": "Call the patient, look at the medication and agree on the next visit",
            "for": _ref(patient),
            "authoredOn": _NOW.isoformat(timespec="seconds"),
            "requester": _ref(f"Organization/o{home}"),
            "owner": _ref(owner),
            "performerType": None if own else [{"coding": [{"system": ROLE, "code": draw.choice(ROLES)}]}],
            "restriction": {"period": {"end": due.isoformat(timespec="seconds")}},
        }


def load(url: str, first: int, last: int, whole: bool) -> None:
    """Write the records of these patients, with the rows that the store would have made of them; `whole`: the directory, too."""

    async def go() -> None:
        database = await open_database(url)
        if whole:
            await _write(database, list(directory()), 10**9)
        for number in range(first, last, _AT_ONCE):
            trees = [tree for one in range(number, min(last, number + _AT_ONCE)) for tree in record(one)]
            await _write(database, trees, 1 + number * (OF_A_PATIENT + 3))
        await database.close()

    asyncio.run(go())


async def _write(database: Database, trees: list[Tree], key: int) -> None:
    """Rows straight into the tables: through the store it takes five times as long, and makes the same."""
    at = micros(_NOW)
    tables: dict[str, list[tuple[Any, ...]]] = {"resource": [], "version": [], "change": []}
    for number, tree in enumerate(trees, start=key):
        clean = {name: value for name, value in tree.items() if value is not None}
        clean["meta"] = {"versionId": "1", "lastUpdated": instant(_NOW)}
        type, id = clean["resourceType"], clean["id"]
        tables["resource"].append((number, type, id, 1, at, False))
        tables["version"].append((number, 1, "create", at, json.dumps(clean).encode()))
        tables["change"].append((0, type, id, 1, "create", "load", at))
        for table, rows in search_rows(number, type, clean, words=False).by_table.items():
            tables.setdefault(table, []).extend(rows)
    async with database.writing() as connection:
        for table, rows in tables.items():
            columns = _COLUMNS.get(table) or insert_statement(table).partition("(")[2].partition(")")[0]
            if database.dialect == "postgresql":
                await connection.copy_records_to_table(table, records=rows, columns=columns.split(", "))
            else:
                marks = ", ".join(f"${place}" for place in range(1, len(rows[0]) + 1))
                await connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


def filled(url: str, tasks: int, writers: int) -> dict[str, Any]:
    """Load all of it; how fast that went."""
    asyncio.run(migrate(url))
    load(url, 0, 0, True)
    begun, patients = perf_counter(), tasks // OF_A_PATIENT
    writers = 1 if url.startswith("sqlite") else writers
    cuts = [patients * at // writers for at in range(writers + 1)]
    spawned = multiprocessing.get_context("spawn")
    parts = [spawned.Process(target=load, args=(url, low, high, False)) for low, high in pairwise(cuts)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
        if part.exitcode:
            raise SystemExit("Loading failed")
    asyncio.run(_analysed(url))
    seconds = perf_counter() - begun
    return {"tasks": patients * OF_A_PATIENT, "seconds": round(seconds), "rate": round(patients * OF_A_PATIENT / seconds)}


async def _analysed(url: str) -> None:
    """The keys go on behind those that were given; and what PostgreSQL does by itself within the minute after so much was written."""
    if url.startswith("postgresql"):
        database = await open_database(url)
        async with database.reading() as connection:
            await connection.execute("SELECT setval(pg_get_serial_sequence('resource', 'key'), 2000000000)")
            await connection.execute("VACUUM ANALYZE")
        await database.close()
